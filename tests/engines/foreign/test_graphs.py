"""Graphs that are longer, deeper or larger than any walk may take."""

from __future__ import annotations

import time
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import helper

from reptrt.engines.foreign.graphs import (
    GraphError,
    require_small_functions,
    require_small_tensors,
    sort_nodes,
    sort_written_nodes,
)
from reptrt.engines.inspection.qdq_graph import weighted_layers
from reptrt.engines.lint import lint_file
from reptrt.engines.lint.repair import repair_file
from reptrt.engines.surgery import clean
from reptrt.models.onnx_import.file import read_onnx
from reptrt.pipeline.cli.bench import BenchInputError, bench_file
from tests.hostile.graphs import (
    chain,
    computed_scale,
    growing_constant,
    nested_functions,
    quantized_model,
)
from tests.hostile.limited import bounded, time_limit


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    onnx.save(model, folder / "m.onnx")
    return folder / "m.onnx"


def test_nodes_are_sorted_and_those_in_order_stay() -> None:
    graph = gs.import_onnx(quantized_model())
    order = [node.name for node in graph.nodes]
    assert [node.name for node in sort_nodes(graph).nodes] == order
    graph.nodes.reverse()
    made: set[str] = {"image"}
    for node in sort_nodes(graph).nodes:
        inputs = [t.name for t in node.inputs if isinstance(t, gs.Variable)]
        assert made.issuperset(inputs)
        made.update(tensor.name for tensor in node.outputs)


def test_a_circle_is_refused() -> None:
    graph = gs.import_onnx(quantized_model())
    graph.nodes[0].inputs[0] = graph.nodes[9].outputs[0]
    with pytest.raises(GraphError, match="circle"):
        sort_nodes(graph)


def backwards(model: onnx.ModelProto) -> onnx.ModelProto:
    nodes = [onnx.NodeProto.FromString(one.SerializeToString()) for one in model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    return model


def test_a_file_whose_nodes_are_in_another_order_is_taken(tmp_path: Path) -> None:
    model = backwards(quantized_model())
    path = saved(model, tmp_path / "in")
    rules = {finding.rule for finding in lint_file(path)}
    repair_file(path, tmp_path / "out.onnx")
    onnx.checker.check_model(tmp_path / "out.onnx")
    assert rules == {f.rule for f in lint_file(saved(quantized_model(), tmp_path / "other"))}
    onnx.checker.check_model(read_onnx(path).proto)


def test_what_an_if_reads_stands_before_it_and_a_circle_stays() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> net (float[4] x, bool b) => (float[4] y) {
        y = If(b) <then_branch = one () => (float[4] t) { t = Relu(r) },
                   else_branch = two () => (float[4] e) { e = Neg(x) }>
        r = Abs(x) }"""
    graph = onnx.parser.parse_model(text).graph
    assert sort_written_nodes(graph)
    assert [node.op_type for node in graph.node] == ["Abs", "If"]
    assert not sort_written_nodes(graph)
    graph.node[0].input[0] = "y"
    assert not sort_written_nodes(graph)


@pytest.mark.parametrize(
    ("op", "attributes"),
    [("Identity", {}), ("Concat", {"axis": 1}), ("Mul", {}), ("Relu", {})],
)
def test_a_chain_of_three_thousand_nodes_is_linted(
    tmp_path: Path, op: str, attributes: dict[str, int]
) -> None:
    path = saved(chain(op, 3000, **attributes), tmp_path / "in")
    with time_limit(), bounded(tmp_path / "in"):
        assert lint_file(path)


def test_a_chain_of_a_thousand_nodes_is_repaired(tmp_path: Path) -> None:
    path = saved(chain("Concat", 1000, axis=1), tmp_path)
    with time_limit():
        repair_file(path, tmp_path / "fixed.onnx")


def test_a_scale_that_sixty_multiplications_compute_takes_no_time(tmp_path: Path) -> None:
    path, started = saved(computed_scale(60), tmp_path), time.process_time()
    lint_file(path)
    assert time.process_time() - started < 5


def test_functions_are_counted_before_they_are_unfolded(tmp_path: Path) -> None:
    require_small_functions(nested_functions(10))
    with pytest.raises(GraphError, match="unfold to more than"):
        require_small_functions(nested_functions(40))
    with pytest.raises(GraphError, match="1000 deep"):
        require_small_functions(nested_functions(1000, calls=1))
    path = saved(nested_functions(100, calls=1), tmp_path)
    assert lint_file(path)


def test_a_function_that_calls_itself_is_refused() -> None:
    model = nested_functions(3, calls=1)
    model.functions[0].node[0].domain, model.functions[0].node[0].op_type = "fd", "F2"
    with pytest.raises(GraphError, match="calls itself"):
        require_small_functions(model)


@pytest.mark.parametrize("elements", [1 << 28, 1 << 31])
def test_a_constant_that_grows_is_not_folded(tmp_path: Path, elements: int) -> None:
    path = saved(growing_constant(elements), tmp_path / "in")
    with time_limit(), bounded(tmp_path / "in"):
        repair_file(path, tmp_path / "in" / "fixed.onnx")
    assert (tmp_path / "in" / "fixed.onnx").stat().st_size < 1 << 16


def test_a_constant_that_stays_small_is_folded(tmp_path: Path) -> None:
    repair_file(saved(growing_constant(100), tmp_path), tmp_path / "fixed.onnx")
    ops = {node.op_type for node in onnx.load(tmp_path / "fixed.onnx").graph.node}
    assert not ops & {"ConstantOfShape", "ReduceMax"}


def test_bench_refuses_what_would_fill_the_memory(tmp_path: Path) -> None:
    path = saved(growing_constant(1 << 31), tmp_path)
    with pytest.raises(BenchInputError, match="big would have"):
        bench_file(path, 1, 0.0)
    with pytest.raises(GraphError, match="would have"):
        require_small_tensors(saved(quantized_model(), tmp_path), 1 << 20)


def test_bench_ends_a_loop_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reptrt.pipeline.cli.bench._SECONDS_PER_RUN", 1.0)
    boolean, scalar = onnx.TensorProto.BOOL, onnx.TensorProto.FLOAT
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Sin", ["x"], ["y"])],
        "body",
        [helper.make_tensor_value_info("i", onnx.TensorProto.INT64, []),
         helper.make_tensor_value_info("c", boolean, []),
         helper.make_tensor_value_info("x", scalar, [1])],
        [helper.make_tensor_value_info("c2", boolean, []),
         helper.make_tensor_value_info("y", scalar, [1])],
    )  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("Loop", ["", "go", "image"], ["out"], body=body)], "g",
        [helper.make_tensor_value_info("image", scalar, [1])],
        [helper.make_tensor_value_info("out", scalar, [1])],
        [helper.make_tensor("go", boolean, [], [True])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with time_limit(), pytest.raises(BenchInputError, match="cannot be measured"):
        bench_file(saved(model, tmp_path), 1, 0.0)


def test_scales_that_meet_in_a_long_chain_of_concats_are_counted_once() -> None:
    layers = weighted_layers(chain("Concat", 3000, axis=1).graph)
    assert [layer.op for layer in layers] == ["Conv", "Gemm"]


@pytest.mark.parametrize(
    "location", ["../w.bin", "/etc/passwd", "link.bin", "", "a\0b", "x" * 5000, "."]
)
@pytest.mark.parametrize("is_constant", [False, True])
def test_data_outside_of_the_folder_is_refused(
    tmp_path: Path, location: str, is_constant: bool
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(bytes(4096))
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    model = quantized_model()
    tensor = model.graph.initializer[-1]
    if is_constant:
        node = model.graph.node.add(op_type="Constant", output=["c"])
        node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
        tensor = node.attribute[0].t
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(GraphError, match="must be a file in its folder"):
        require_small_tensors(folder / "m.onnx", 1)
    tensor.external_data[0].value = "w.bin"
    (tmp_path / "w.bin").rename(folder / "w.bin")
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    require_small_tensors(folder / "m.onnx", 1)


def test_weights_do_not_share_their_data_without_end(tmp_path: Path) -> None:
    model, path = quantized_model(), tmp_path / "m.onnx"
    (tmp_path / "m.data").write_bytes(bytes(4096))
    for number in range(50):  # 200 kB of a file with 4 kB
        tensor = model.graph.initializer.add(name=f"t{number}", data_type=1, dims=[1024])
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="m.data")
    path.write_bytes(model.SerializeToString())
    for read in (
        lambda: require_small_tensors(path, 1),
        lambda: lint_file(path),
        lambda: clean(path, tmp_path / "fixed.onnx"),
        lambda: read_onnx(path),
    ):
        with pytest.raises(ValueError, match=r"external data|bytes of the files") as caught:
            read()
        assert caught.value.exit_code == 2  # type: ignore[attr-defined]
