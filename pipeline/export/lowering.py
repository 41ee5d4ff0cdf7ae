"""Turn fake quantization into the operators of a Q/DQ graph, still in PyTorch.

Each weight quantizer becomes an int8 tensor behind a DequantizeLinear; each activation quantizer
becomes QuantizeLinear → DequantizeLinear, with a Clip in front where the grid is narrower than
INT8 (any grid of fewer than 8 bits is exact on the INT8 one), and with biases that move the codes
0..255 onto it (`reptrt.pipeline.export.shift_biases`). FP8 saturates by itself. Two custom operators stand for the ONNX ones, so that the
exporter cannot fold or decompose them. Probabilities on a logarithmic grid become float arithmetic.
"""

from __future__ import annotations

import copy

import torch
from torch import fx

from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.quantized.quantizers import Fp8Quantizer, LogSqrt2Quantizer, TensorQuantizer
from reptrt.models.onnx_import.island_op import is_island
from reptrt.models.parameters import fresh_path, get_tensor
from reptrt.pipeline.export.shift_biases import shift_biases

aten = torch.ops.aten

_CONSTANTS = "reptrt_constants"
_LARGEST_HALF = 65504.0


@torch.library.custom_op("reptrt::quantize_linear", mutates_args=())
def quantize_linear(x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
    """ONNX QuantizeLinear to the type of `zero_point`, int8 or float8_e4m3fn, which is 0; per tensor."""
    if zero_point.dtype == torch.float8_e4m3fn:
        return torch.clamp(x / scale, -448, 448).to(torch.float8_e4m3fn)
    return torch.clamp(torch.round(x / scale), -128, 127).to(torch.int8)


@torch.library.custom_op("reptrt::dequantize_linear", mutates_args=())
def dequantize_linear(
    codes: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor
) -> torch.Tensor:
    """ONNX DequantizeLinear from int8 or FP8, zero point 0; a scale [C] belongs to axis 0."""
    shape = [-1] + [1] * (codes.ndim - 1) if scale.ndim else []
    return codes.to(scale.dtype) * scale.view(shape)


quantize_linear.register_fake(
    lambda x, scale, zero_point: torch.empty_like(x, dtype=zero_point.dtype)
)
dequantize_linear.register_fake(
    lambda codes, scale, zero_point: torch.empty_like(codes, dtype=scale.dtype)
)


@torch.no_grad()
def lower(model: QuantizedModel, *, half: bool = False) -> fx.GraphModule:
    """Copy of `model` in which quantizers are Q/DQ operators and weights are int8 tensors.

    Args:
        model: calibrated model; left unchanged.
        half: compute the float remainder in FP16. Scales, graph inputs and outputs stay FP32.
    """
    lowered = copy.deepcopy(model.graph_module)
    lowered.meta = {**lowered.meta, _CONSTANTS: {}}
    shift_biases(lowered)  # before they lose digits to FP16
    if half:
        _halve(lowered)
    for node in list(lowered.graph.nodes):
        if node.op != "call_module":
            continue
        quantizer = lowered.get_submodule(str(node.target))
        assert isinstance(quantizer, TensorQuantizer)
        if isinstance(quantizer, LogSqrt2Quantizer):
            _lower_probabilities(lowered, node, quantizer, half)
        elif quantizer.axis is None:
            _lower_activation(lowered, node, quantizer, half)
        else:
            _lower_weight(lowered, node, quantizer, model.graph_module, half)
    return _finish(lowered)


@torch.no_grad()
def lower_float(module: fx.GraphModule) -> fx.GraphModule:
    """Copy of a float graph that computes in FP16; its inputs and outputs stay FP32."""
    lowered = copy.deepcopy(module)
    _halve(lowered)
    return _finish(lowered)


def _lower_weight(
    module: fx.GraphModule,
    call: fx.Node,
    quantizer: TensorQuantizer,
    original: fx.GraphModule,
    half: bool,
) -> None:
    weight = call.args[0]
    assert isinstance(weight, fx.Node)
    path = str(weight.target)
    codes = quantizer.quantize(get_tensor(original, weight))  # `module` may hold it in FP16
    tensors = {"codes": codes, "scale": quantizer.scale}
    tensors["zero_point"] = torch.zeros_like(quantizer.scale, dtype=torch.int8)
    with module.graph.inserting_before(call):
        arguments = [_constant(module, f"{path}_{kind}", t) for kind, t in tensors.items()]
        value = module.graph.call_function(
            torch.ops.reptrt.dequantize_linear.default, (*arguments,)
        )
        value = _cast(module, value, torch.float16) if half else value
    _replace(module, call, value)


def _lower_activation(
    module: fx.GraphModule, call: fx.Node, quantizer: TensorQuantizer, half: bool
) -> None:
    x = call.args[0]
    assert isinstance(x, fx.Node)
    name = str(call.target).rpartition(".")[2]
    scale = quantizer.scale
    with module.graph.inserting_before(call):
        x = _cast(module, x, torch.float32) if half else x
        is_fp8 = isinstance(quantizer, Fp8Quantizer)
        limits = tuple(int(multiple) - quantizer.offset for multiple in quantizer.multiples)
        if limits != (-128, 127) and not is_fp8:
            bounds = [limit * float(scale) for limit in limits]
            x = module.graph.call_function(aten.clamp.default, (x, *bounds))
        code_type = torch.float8_e4m3fn if is_fp8 else torch.int8
        arguments = (
            _constant(module, f"{name}_scale", scale),
            _constant(module, f"{name}_zero_point", torch.zeros((), dtype=code_type)),
        )
        codes = module.graph.call_function(
            torch.ops.reptrt.quantize_linear.default, (x, *arguments)
        )
        value = module.graph.call_function(
            torch.ops.reptrt.dequantize_linear.default, (codes, *arguments)
        )
        value = _cast(module, value, torch.float16) if half else value
    _replace(module, call, value)


def _lower_probabilities(
    module: fx.GraphModule, call: fx.Node, quantizer: LogSqrt2Quantizer, half: bool
) -> None:
    """Logarithm, rounding and power in FP32: no engine has this grid."""
    x = call.args[0]
    assert isinstance(x, fx.Node)
    zero_code = quantizer.grid.quant_max + 1
    least = 2.0 ** (-(zero_code + 1) / 2)  # over the scale; rounds to `zero_code`, as 0 does
    add = module.graph.call_function
    with module.graph.inserting_before(call):
        name = str(call.target).rpartition(".")[2]
        scale = _constant(module, f"{name}_scale", quantizer.scale)
        x = _cast(module, x, torch.float32) if half else x
        ratio = add(aten.clamp.default, (add(aten.div.Tensor, (x, scale)), least))
        steps = add(
            aten.round.default, (add(aten.mul.Tensor, (add(aten.log2.default, (ratio,)), -2.0)),)
        )
        codes = add(aten.clamp.default, (steps, quantizer.grid.quant_min, zero_code))
        power = add(aten.exp2.default, (add(aten.mul.Tensor, (codes, -0.5)),))
        value = add(aten.mul.Tensor, (power, scale))
        is_zero = add(aten.eq.Scalar, (codes, zero_code))
        value = add(aten.where.ScalarSelf, (is_zero, 0.0, value))
        value = _cast(module, value, torch.float16) if half else value
    _replace(module, call, value)


def _halve(module: fx.GraphModule) -> None:
    """FP16 parameters and constants; FP32 graph inputs, outputs and quantizer scales."""
    scales = {path: q.scale for path, q in module.named_modules() if isinstance(q, TensorQuantizer)}
    kept = {path: scale.clone() for path, scale in scales.items()}
    module.half()
    for path, scale in kept.items():
        module.get_submodule(path).scale = scale
    for node in list(module.graph.nodes):
        if is_island(node):
            _keep_island_float(module, node)
        elif node.op == "placeholder":
            if not _is_float(node):
                continue
            with module.graph.inserting_after(node):
                half = _cast(module, node, torch.float16)
            node.replace_all_uses_with(
                half, delete_user_cb=lambda user, half=half: user is not half
            )
        elif node.op == "output":
            with module.graph.inserting_before(node):
                node.args = (fx.map_arg(node.args[0], lambda n: _whole(module, n)),)
        elif node.kwargs.get("dtype") == torch.float32:
            node.kwargs = {**node.kwargs, "dtype": torch.float16}


def _keep_island_float(module: fx.GraphModule, island: fx.Node) -> None:
    """An island runs in FP32, whatever is around it: its nodes stay as they are in the file."""
    inputs = island.args[0]
    assert isinstance(inputs, (list, tuple))
    with module.graph.inserting_before(island):
        cast = [
            _widen(module, node) if isinstance(node, fx.Node) and _is_float(node) else node
            for node in inputs
        ]
    island.args = (cast, *island.args[1:])
    for part in [user for user in island.users if _is_float(user)]:
        with module.graph.inserting_after(part):
            half = _cast(module, part, torch.float16)
        _replace_but(part, half)


def _widen(module: fx.GraphModule, value: fx.Node) -> fx.Node:
    """`value` in FP32, behind a clip to what FP16 holds.

    TensorRT-RTX 1.7 does not build a recurrent layer that reads a Cast from FP16 with nothing between.
    """
    wide = _cast(module, value, torch.float32)
    return module.graph.call_function(aten.clamp.default, (wide, -_LARGEST_HALF, _LARGEST_HALF))


def _replace_but(value: fx.Node, cast: fx.Node) -> None:
    """Let all that reads `value` read `cast`, but `cast` itself."""
    value.replace_all_uses_with(cast, delete_user_cb=lambda user: user is not cast)


def _is_float(node: object) -> bool:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return not isinstance(value, torch.Tensor) or value.is_floating_point()


def _whole(module: fx.GraphModule, value: fx.Node) -> fx.Node:
    """`value` in FP32; counts and decisions as they are."""
    return _cast(module, value, torch.float32) if _is_float(value) else value


def _cast(module: fx.GraphModule, value: fx.Node, dtype: torch.dtype) -> fx.Node:
    return module.graph.call_function(aten._to_copy.default, (value,), {"dtype": dtype})


def _constant(module: fx.GraphModule, path: str, value: torch.Tensor) -> fx.Node:
    """Read what `_constant` stored for `path`; the network's own tensor of that name stays its own."""
    stored: dict[str, str] = module.meta.setdefault(_CONSTANTS, {})
    if path not in stored:
        stored[path] = fresh_path(module, path)
        owner_path, _, name = stored[path].rpartition(".")
        module.get_submodule(owner_path).register_buffer(name, value)
    return module.graph.get_attr(stored[path])


def _replace(module: fx.GraphModule, call: fx.Node, value: fx.Node) -> None:
    call.replace_all_uses_with(value)
    module.graph.erase_node(call)


def _finish(module: fx.GraphModule) -> fx.GraphModule:
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return module
