"""In which type and layout every tensor is written, and the Reformat layers between.

Layouts follow the A100 and TITAN RTX lists: "linear" where TensorRT says row major linear, "nhwc"
for FP16, "c32" for INT8 and for what INT8 layers write in FP16. Which of several equal layouts the
builder's timing picks (channels in steps of 8 or of 16) is not predicted: those NoOps cost nothing.
"""

from __future__ import annotations

from typing import ClassVar

from reptrt.engines.fusion_rules.network import DEQUANTIZE, QUANTIZE, Form, Network, Node
from reptrt.engines.fusion_rules.points import VIEWS
from reptrt.engines.fusion_rules.rule import Build, Evidence, Rule

_REFORMATS = (QUANTIZE, DEQUANTIZE, "Cast", "Copy")
_KEEPS_LAYOUT = ("AveragePool", "Concat", "MaxPool", "Pointwise", "Resize", "Slice", "Split")
_FOLLOWS_LAYOUT = ("Concat", "Pointwise")
_CONVOLUTIONS = ("Conv", "ConvTranspose")
_STEM_CHANNELS = 4


class InsertReformats(Rule):
    """A100, TITAN RTX: Reformat where a layer wants another type or layout than there is.

    Between FP32 at the inputs and outputs and FP16 inside (Q and DQ do both at once); before a
    global average pool behind INT8 layers; behind a first layer that writes FP32. A change of
    layout of a single point is a NoOp.
    """

    evidence: ClassVar[Evidence] = Evidence.SEEN

    def apply(self, network: Network, build: Build) -> None:
        """Choose the forms of all tensors in order of computation, then insert what they lack."""
        for node in network.in_order():
            for tensor in node.outputs:
                network.set_form(tensor, written_form(network, build, node, tensor))
        for node in network.in_order():
            for tensor in node.inputs:
                if network.writer(tensor) is None:
                    self._convert(network, build, tensor)
            for tensor in node.outputs:
                self._convert(network, build, tensor)

    def _convert(self, network: Network, build: Build, tensor: str) -> None:
        actual = network.tensors[tensor].form
        wanted: dict[Form, list[Node]] = {}
        for reader in network.readers(tensor):
            form = wanted_form(network, build, reader, tensor)
            if form is not None:
                wanted.setdefault(form, []).append(reader)
        lacking = {form: readers for form, readers in wanted.items() if form != actual}
        for form, readers in lacking.items():
            everyone = len(wanted) == 1 and tensor not in network.outputs
            moved = network.readers(tensor) if everyone else readers
            self._insert(network, tensor, form, moved)

    def _insert(self, network: Network, tensor: str, form: Form, readers: list[Node]) -> None:
        old = network.tensors[tensor]
        is_free = old.is_point and old.dtype == form.dtype
        converted = network.fresh_tensor(tensor, form)
        for reader in readers:
            network.rewire(reader, tensor, converted)
        part = f"Reformatting CopyNode for Input Tensor 0 to {' + '.join(readers[0].parts)}"
        order = min(reader.order for reader in readers)
        layer = "NoOp" if is_free else "Reformat"
        network.add(Node("Reformat", [tensor], [converted], [part], order, layer=layer))


def written_form(network: Network, build: Build, node: Node, tensor: str) -> Form:
    """The form in which `node` writes `tensor`."""
    dtype = network.tensors[tensor].dtype
    source = network.tensors[node.inputs[0]].form if node.inputs else Form(dtype)
    if node.op in _REFORMATS:
        return _reformatted(network, build, node, tensor)
    if node.op in _CONVOLUTIONS or node.layer == "CaskConvolution":
        return _convolved(network, build, node, dtype)
    if node.op == "GlobalAveragePool":
        layout = "c2" if source == Form("Half", "c32") else source.layout
        return Form(source.dtype, layout)
    if node.op in ("AveragePool", "MaxPool"):
        return source
    if node.op == "Concat":
        return Form(dtype, _joined_layout(network, node))
    if node.op in _KEEPS_LAYOUT:
        return Form(dtype, source.layout)
    if node.op in VIEWS:
        return Form(source.dtype)
    return Form(dtype)


def _reformatted(network: Network, build: Build, node: Node, tensor: str) -> Form:
    """Q, DQ, Cast and copies write what the first reader with a wish wants."""
    dtype = network.tensors[tensor].dtype
    source = network.tensors[node.inputs[0]]
    if tensor in network.outputs:
        return Form(network.output_types[tensor])
    if node.op == "Copy":
        return source.form
    for reader in network.readers(tensor):
        if node.op == DEQUANTIZE and build.is_weakly_typed and reader.skip == tensor:
            return Form("Float")
        follows = reader.op in _FOLLOWS_LAYOUT or _is_only_skip(reader, tensor)
        form = None if follows else wanted_form(network, build, reader, tensor)
        if form is not None and form.dtype == dtype:
            if node.op == QUANTIZE and source.form.layout == "c2":
                return Form(dtype, "c4")
            return form
    if node.op == QUANTIZE and len(source.dims) == 4:
        return Form(dtype, "c32")
    return Form(dtype, source.form.layout)


def _joined_layout(network: Network, concat: Node) -> str:
    """The layout of the first input that no Reformat writes; Reformats then write it too."""
    writers = {name: network.writer(name) for name in concat.inputs}
    free = [name for name, node in writers.items() if node is not None and node.op in _REFORMATS]
    bound = [name for name in concat.inputs if name not in free]
    layout = network.tensors[(bound or free)[0]].form.layout
    for name in free:
        if network.only_reader(name) is concat:
            network.set_form(name, Form(network.tensors[name].dtype, layout))
    return layout


def _convolved(network: Network, build: Build, node: Node, dtype: str) -> Form:
    source = network.tensors[node.inputs[0]]
    if source.dtype != "Int8":
        dtype = network.tensors[node.weights[0]].dtype
        return Form(dtype, _float_layout(build, dtype, source.channels))
    if dtype == "Int8":
        return Form(dtype, "c32")
    if build.is_weakly_typed or dtype == "Float":
        skip = network.writer(node.skip)
        reads_pair = skip is not None and skip.op == DEQUANTIZE
        is_stem = source.channels <= _STEM_CHANNELS
        if _leaves(network, node.outputs[0]) or is_stem or reads_pair:
            return Form("Float")
    return Form(dtype, "c32")


def _float_layout(build: Build, dtype: str, channels: int) -> str:
    if dtype == "Float" and (channels <= _STEM_CHANNELS or build.compute_capability < (8, 0)):
        return "linear"
    return "nhwc"


def _leaves(network: Network, tensor: str) -> bool:
    """Whether `tensor`, or a view of it, is a Float output of the network."""
    reader = network.only_reader(tensor)
    result = reader.outputs[0] if reader is not None and reader.op in VIEWS else tensor
    return network.output_types.get(result) == "Float"


def wanted_form(network: Network, build: Build, node: Node, tensor: str) -> Form | None:
    """The form in which `node` wants to read `tensor`, or None where any will do."""
    actual = network.tensors[tensor].form
    if node.op in _CONVOLUTIONS or node.layer == "CaskConvolution":
        return _convolution_wants(network, build, node, tensor)
    if node.op == "GlobalAveragePool" and actual == Form("Half", "c32"):
        return Form("Half", "c2")
    if node.op in VIEWS:
        return Form(actual.dtype)
    if node.op in _FOLLOWS_LAYOUT and len(node.inputs) > 1:
        layout = network.tensors[node.outputs[0]].form.layout
        return Form(actual.dtype, layout)
    return None


def _is_only_skip(node: Node, tensor: str) -> bool:
    return tensor == node.skip and tensor != node.inputs[0]


def _convolution_wants(network: Network, build: Build, node: Node, tensor: str) -> Form:
    if _is_only_skip(node, tensor):
        return network.tensors[node.outputs[0]].form
    source = network.tensors[tensor]
    if len(source.dims) < 3:
        return source.form
    if source.dtype == "Int8":
        if node.layer == "ConvActPool":
            return Form("Int8")
        is_small = source.channels <= _STEM_CHANNELS
        is_vector = source.is_point and build.compute_capability < (8, 0)
        c4 = is_small or (is_vector and source.form.layout == "c4")
        return Form("Int8", "c4" if c4 else "c32")
    dtype = network.tensors[node.weights[0]].dtype
    return Form(dtype, _float_layout(build, dtype, source.channels))


class OutputForms(Rule):
    """A100, FP16: a Reformat to FP32 before the output, but behind INT8 layers, which write FP32."""

    evidence: ClassVar[Evidence] = Evidence.SEEN

    def apply(self, network: Network, build: Build) -> None:
        """Put a Reformat behind each layer that writes an output in another form."""
        for node in network.nodes():
            for index, tensor in enumerate(node.outputs):
                if tensor in network.outputs:
                    self._convert(network, node, index, tensor)

    def _convert(self, network: Network, node: Node, index: int, tensor: str) -> None:
        form = network.tensors[tensor].form
        wanted = Form(network.output_types[tensor])
        if form == wanted:
            return
        inner = network.fresh_tensor(tensor, form)
        network.remove(node)
        node.outputs[index] = inner
        network.add(node)
        network.set_form(tensor, wanted)
        part = f"Reformatting CopyNode for Output Tensor {index} to {' + '.join(node.parts)}"
        network.add(Node("Reformat", [inner], [tensor], [part], node.order, layer="Reformat"))
