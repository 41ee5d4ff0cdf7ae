"""Concat has no kernel: who writes its inputs writes into it, or a copy does."""

from __future__ import annotations

from typing import ClassVar

from reptrt.engines.fusion_rules.network import Form, Network, Node
from reptrt.engines.fusion_rules.rule import Build, Evidence, Rule

_VIEWS = ("Flatten", "Reshape", "Slice", "Split", "Squeeze", "Unsqueeze")
_CHANNELS_AT_ONCE = {"Int8": 32, "Half": 8}


class RemoveConcat(Rule):
    """Guide: "concat elimination". ultralytics/ultralytics#17640 and #6471: copies of some inputs.

    Copied are what another layer reads too ("Add_output_0 copy"), parts of a Split ("Split_output_0
    copy"), and what Resize writes ("Resize_output_0 copy"); so, it is assumed, is a part of what twins write. That parts which start within a vector
    of channels (32 in INT8, 8 in FP16) are copied too is assumed.
    """

    evidence: ClassVar[Evidence] = Evidence.REPORTED

    def apply(self, network: Network, build: Build) -> None:
        """Put a copy before each input that cannot be written in place."""
        for concat in network.nodes("Concat"):
            if concat.layer:
                continue
            concat.layer = "Concat"
            starts = self._starts(network, concat)
            for tensor in list(dict.fromkeys(concat.inputs)):
                if self._needs_copy(network, concat, tensor, starts):
                    self._copy(network, concat, tensor)

    def _starts(self, network: Network, concat: Node) -> dict[str, int]:
        """First channel of each input, 0 where other axes are joined."""
        starts, start = {}, 0
        for tensor in concat.inputs:
            starts[tensor] = start
            start += network.tensors[tensor].channels if concat.integer("axis", 1) == 1 else 0
        return starts

    def _needs_copy(
        self, network: Network, concat: Node, tensor: str, starts: dict[str, int]
    ) -> bool:
        writer = network.writer(tensor)
        if writer is None or writer.op in (*_VIEWS, "Resize") or len(writer.outputs) > 1:
            return True
        at_once = _CHANNELS_AT_ONCE.get(network.tensors[tensor].dtype, 1)
        if len(network.tensors[tensor].dims) == 4 and starts[tensor] % at_once:
            return True
        return network.only_reader(tensor) is not concat

    def _copy(self, network: Network, concat: Node, tensor: str) -> None:
        copied = network.fresh_tensor(tensor, Form(network.tensors[tensor].dtype))
        network.rewire(concat, tensor, copied)
        copy = Node("Copy", [tensor], [copied], [f"{tensor} copy"], concat.order, layer="Reformat")
        network.add(copy)
