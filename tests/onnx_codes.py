"""Read and force the integer codes of a Q/DQ model, in ONNX Runtime and in PyTorch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from reptrt.calibrators.quantized.quantized_model import ACTIVATIONS, QuantizedModel

Codes = dict[str, NDArray[np.int8]]
FORCED = "_computed"


def session(proto: onnx.ModelProto, *, optimized: bool) -> onnxruntime.InferenceSession:
    """ONNX Runtime session on one thread, with every graph optimization or with none."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    )
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def quantize_nodes(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    """QuantizeLinear nodes to integers, in graph order."""
    floats = {t.name for t in proto.graph.initializer if t.data_type == TensorProto.FLOAT8E4M3FN}
    nodes = [node for node in proto.graph.node if node.op_type == "QuantizeLinear"]
    return [node for node in nodes if node.input[2:3] and node.input[2] not in floats]


def show_codes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Copy of `proto` whose QuantizeLinear outputs are graph outputs too."""
    shown = onnx.ModelProto()
    shown.CopyFrom(proto)
    for node in quantize_nodes(shown):
        shown.graph.output.append(
            helper.make_tensor_value_info(node.output[0], TensorProto.INT8, None)
        )
    return shown


def force_codes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Copy of `proto` in which every layer reads given codes instead of computed ones.

    Each QuantizeLinear output `c` becomes a graph input; what the node computes is the graph
    output `c_computed`.
    """
    forced = onnx.ModelProto()
    forced.CopyFrom(proto)
    for node in quantize_nodes(forced):
        codes = node.output[0]
        node.output[0] = codes + FORCED
        forced.graph.input.append(helper.make_tensor_value_info(codes, TensorProto.INT8, None))
        forced.graph.output.append(
            helper.make_tensor_value_info(codes + FORCED, TensorProto.INT8, None)
        )
    return forced


@torch.no_grad()
def torch_codes(
    model: QuantizedModel, proto: onnx.ModelProto, images: torch.Tensor
) -> tuple[Codes, list[NDArray[np.float32]]]:
    """Codes of every quantizer call under the names of `proto`, and the outputs.

    Those on a logarithmic grid are not among them, for in ONNX they are no codes; nor are those in FP8. A quantizer that is called on several tensors owns several QuantizeLinear nodes with one scale:
    both sides keep graph order.
    """
    recorded: dict[str, list[NDArray[np.int8]]] = defaultdict(list)
    hooks = [
        quantizer.register_forward_pre_hook(
            lambda module, arguments, path=path: recorded[path.split(".")[-1]].append(
                module.quantize(arguments[0]).numpy()
            )
        )
        for path, quantizer in model.graph_module.named_modules()
        if path.startswith(f"{ACTIVATIONS}.") and quantizer.is_uniform
    ]
    outputs = [output.numpy() for output in model(images)]
    for hook in hooks:
        hook.remove()
    names = defaultdict(list)
    for node in quantize_nodes(proto):
        names[node.input[1].removesuffix("_scale")].append(node.output[0])
    assert {k: len(v) for k, v in names.items()} == {k: len(v) for k, v in recorded.items()}
    codes = {
        name: array
        for quantizer, outs in names.items()
        for name, array in zip(outs, recorded[quantizer], strict=True)
    }
    return codes, outputs


def onnx_codes(
    proto: onnx.ModelProto, images: torch.Tensor, *, optimized: bool
) -> tuple[Codes, list[NDArray[np.float32]]]:
    """Codes of every QuantizeLinear and the outputs, running freely."""
    names = [node.output[0] for node in quantize_nodes(proto)]
    outputs = [output.name for output in proto.graph.output]
    run = session(show_codes(proto), optimized=optimized).run
    values = run(names + outputs, {"images": images.numpy()})
    return dict(zip(names, values, strict=False)), values[len(names) :]


def forced_codes(
    proto: onnx.ModelProto,
    images: torch.Tensor,
    codes: Mapping[str, NDArray[np.int8]],
    *,
    optimized: bool,
) -> tuple[Codes, list[NDArray[np.float32]]]:
    """What each QuantizeLinear and each output computes when every layer reads `codes`."""
    outputs = [output.name for output in proto.graph.output]
    run = session(force_codes(proto), optimized=optimized).run
    computed = [name + FORCED for name in codes]
    values = run(computed + outputs, {"images": images.numpy(), **codes})
    return dict(zip(codes, values, strict=False)), values[len(computed) :]


def agreement(one: Codes, other: Codes) -> float:
    """Share of equal codes over all quantizers."""
    equal = sum(int((one[name] == other[name]).sum()) for name in one)
    return equal / sum(array.size for array in one.values())


def largest_step(one: Codes, other: Codes) -> int:
    """Largest difference of two codes."""
    return max(int(np.abs(one[n].astype(int) - other[n].astype(int)).max()) for n in one)


def snr_db(actual: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Signal over noise power in dB."""
    noise = np.square(actual.astype(np.float64) - reference).sum()
    return float(10 * np.log10(np.square(reference.astype(np.float64)).sum() / max(noise, 1e-300)))
