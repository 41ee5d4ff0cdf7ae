from __future__ import annotations

import onnx_graphsurgeon as gs
import pytest

from reptrt.engines.surgery import DEFAULT_PASSES, Pass, SurgeryError, run_passes

TEXT = "g (float[1] x) => (float[1] y) { a = Relu(x)  y = Relu(a) }"


class Rename(Pass):
    def apply(self, graph: gs.Graph) -> int:
        graph.nodes[0].op = "Neg"
        return 1

    def ensures(self, graph: gs.Graph) -> None:
        if graph.nodes[0].op != "Neg":
            raise SurgeryError("not renamed")


class Refuse(Pass):
    def requires(self, graph: gs.Graph) -> None:
        raise SurgeryError("refused")

    def apply(self, graph: gs.Graph) -> int:
        raise AssertionError("apply must not run after requires has refused")


class Lie(Rename):
    def apply(self, graph: gs.Graph) -> int:
        return 1


def test_passes_run_in_order_and_report_their_sites(parse):
    graph = gs.import_onnx(parse(TEXT))
    assert run_passes(graph, [Rename()]) == {"Rename": 1}
    assert [node.op for node in graph.nodes] == ["Neg", "Relu"]


@pytest.mark.parametrize("bad", [Refuse(), Lie()], ids=["requires", "ensures"])
def test_a_broken_promise_stops_the_surgery(bad, parse):
    with pytest.raises(SurgeryError) as caught:
        run_passes(gs.import_onnx(parse(TEXT)), [bad])
    assert caught.value.exit_code == 2


def test_default_passes_are_all_different():
    assert len({type(p) for p in DEFAULT_PASSES}) == len(DEFAULT_PASSES)
