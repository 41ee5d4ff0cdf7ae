"""Converters of ONNX's normalizations, reductions, resizing and activations; see `operators`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from onnx2torch.onnx_graph import OnnxGraph
from onnx2torch.onnx_node import OnnxNode
from torch import nn

from reptrt.models.onnx_import.operators import (
    HANDLED,
    Operator,
    Tensor,
    UnsupportedFormError,
    constant_input,
    converts,
    integers,
)

__all__ = ["HANDLED"]


def _required(node: OnnxNode, graph: OnnxGraph, index: int) -> Tensor:
    found = constant_input(node, graph, index)
    if found is None:
        raise UnsupportedFormError(f"input {index} is not constant")
    return found


class BatchNorm(nn.Module):
    """Normalization over the batch with fixed statistics; `trace` folds it into a convolution."""

    def __init__(self, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor, eps: float) -> None:
        super().__init__()
        self.eps = eps
        for name, value in zip(("weight", "bias"), (gamma, beta), strict=True):
            self.register_parameter(name, nn.Parameter(value, requires_grad=False))
        self.register_buffer("running_mean", mean)
        self.register_buffer("running_var", var)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `x` [N, channels, ...]."""
        return F.batch_norm(
            x,
            self.running_mean,  # type: ignore[arg-type]  # buffers
            self.running_var,  # type: ignore[arg-type]
            self.weight,  # type: ignore[arg-type]
            self.bias,  # type: ignore[arg-type]
            eps=self.eps,
        )


@converts("BatchNormalization")
def _batch_norm(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    if node.attributes.get("training_mode"):
        raise UnsupportedFormError("is in training mode: export the model in evaluation mode")
    gamma, beta, mean, variance = (_required(node, graph, index) for index in range(1, 5))
    return BatchNorm(gamma, beta, mean, variance, float(node.attributes.get("epsilon", 1e-5)))


@converts("LayerNormalization")
def _layer_norm(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    weight, bias = _required(node, graph, 1), constant_input(node, graph, 2)
    if int(node.attributes.get("axis", -1)) not in (-weight.ndim, *range(1, 8)):
        raise UnsupportedFormError("normalizes other axes than the last ones")
    layer = nn.LayerNorm(tuple(weight.shape), float(node.attributes.get("epsilon", 1e-5)))
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = nn.Parameter(torch.zeros_like(weight) if bias is None else bias, False)
    return layer


@converts("GroupNormalization", "InstanceNormalization")
def _group_norm(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    weight, bias = _required(node, graph, 1), _required(node, graph, 2)
    channels = weight.numel()
    groups = int(node.attributes.get("num_groups", channels))
    layer = nn.GroupNorm(groups, channels, float(node.attributes.get("epsilon", 1e-5)))
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


_MAX_POOLS: tuple[Callable[..., nn.Module], ...] = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_AVERAGE_POOLS: tuple[Callable[..., nn.Module], ...] = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


@converts("MaxPool", "AveragePool")
def _pool(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """Pooling whose padding is symmetric, as canonical graphs have it."""
    kernel = tuple(int(side) for side in node.attributes["kernel_shape"])
    rank, stated = len(kernel), node.attributes
    if not 1 <= rank <= 3 or stated.get("storage_order"):
        raise UnsupportedFormError(f"pools over {rank} axes, or in column order")
    padding = tuple(int(side) for side in stated.get("pads", [0] * rank)[:rank])
    strides = tuple(int(side) for side in stated.get("strides", [1] * rank))
    dilations = tuple(int(side) for side in stated.get("dilations", [1] * rank))
    ceil = bool(stated.get("ceil_mode"))
    if node.operation_type == "MaxPool":
        return _MAX_POOLS[rank - 1](kernel, strides, padding, dilations, ceil_mode=ceil)
    if any(dilation != 1 for dilation in dilations):
        raise UnsupportedFormError("averages with a dilation")
    include = bool(stated.get("count_include_pad"))
    return _AVERAGE_POOLS[rank - 1](kernel, strides, padding, ceil, include)


def average(x: Tensor) -> Tensor:
    """Mean of every channel; the sides become 1."""
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


def maximum(x: Tensor) -> Tensor:
    """Maximum of every channel; the sides become 1."""
    return x.amax(tuple(range(2, x.ndim)), keepdim=True)


@converts("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    return Operator(average if node.operation_type == "GlobalAveragePool" else maximum)


def mean(x: Tensor, axes: tuple[int, ...], keepdim: bool) -> Tensor:
    """Mean over `axes`."""
    return x.mean(axes, keepdim=keepdim)


def total(x: Tensor, axes: tuple[int, ...], keepdim: bool) -> Tensor:
    """Sum over `axes`."""
    return x.sum(axes, keepdim=keepdim)


def l1(x: Tensor, axes: tuple[int, ...], keepdim: bool) -> Tensor:
    """Sum of magnitudes over `axes`."""
    return x.abs().sum(axes, keepdim=keepdim)


def l2(x: Tensor, axes: tuple[int, ...], keepdim: bool) -> Tensor:
    """Euclidean norm over `axes`."""
    return x.square().sum(axes, keepdim=keepdim).sqrt()


def sum_of_squares(x: Tensor, axes: tuple[int, ...], keepdim: bool) -> Tensor:
    """Sum of squares over `axes`."""
    return x.square().sum(axes, keepdim=keepdim)


def log_total(x: Tensor, axes: tuple[int, ...], keepdim: bool) -> Tensor:
    """Logarithm of the sum over `axes`."""
    return x.sum(axes, keepdim=keepdim).log()


_REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "ReduceMean": mean,
    "ReduceSum": total,
    "ReduceMax": torch.amax,
    "ReduceMin": torch.amin,
    "ReduceL1": l1,
    "ReduceL2": l2,
    "ReduceSumSquare": sum_of_squares,
    "ReduceLogSum": log_total,
    "ReduceLogSumExp": torch.logsumexp,
}


@converts(*_REDUCTIONS)
def _reduce(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    axes = integers(node, graph, 1, "axes")
    if not axes:
        if node.attributes.get("noop_with_empty_axes"):
            return nn.Identity()
        raise UnsupportedFormError("reduces every axis, the batch too")
    keepdim = bool(node.attributes.get("keepdims", 1))
    return Operator(_REDUCTIONS[node.operation_type], axes, keepdim)


def resize(x: Tensor, size: Sequence[int], mode: str, align_corners: bool | None) -> Tensor:
    """Resize the last axes of `x` [N, channels, ...] to `size`."""
    return F.interpolate(x, list(size), mode=mode, align_corners=align_corners)


def rescale(x: Tensor, factors: Sequence[float], mode: str, align_corners: bool | None) -> Tensor:
    """Resize the last axes of `x` [N, channels, ...] by `factors`, whatever their size."""
    return F.interpolate(x, scale_factor=list(factors), mode=mode, align_corners=align_corners)


def upsample(x: Tensor, factors: Sequence[float]) -> Tensor:
    """Repeat every element, `factors` of it along each of the last axes."""
    return F.interpolate(x, scale_factor=list(factors), mode="nearest")


@converts("Resize", "Upsample")
def _resize(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """Canonical graphs state the size [height, width] that results as an attribute."""
    size, source = (tuple(node.attributes[key]) for key in ("target_size", "source_size"))
    stays_open = "factors" in node.attributes
    mode = str(node.attributes.get("mode", "nearest"))
    is_upsample = node.operation_type == "Upsample"
    default = "asymmetric" if is_upsample else "half_pixel"
    where = str(node.attributes.get("coordinate_transformation_mode", default))
    if mode == "nearest":
        factors = [after / before for before, after in zip(source, size, strict=True)]
        if any(not factor.is_integer() for factor in factors):
            _require_floor(node, where, is_upsample)
            if stays_open:
                return Operator(rescale, tuple(factors), "nearest", None)
            return Operator(resize, size, "nearest", None)
        return Operator(upsample, tuple(factors))
    if where not in ("half_pixel", "pytorch_half_pixel", "align_corners") or len(size) != 2:
        raise UnsupportedFormError(f"{mode} interpolation with {where} coordinates")
    if (
        node.attributes.get("antialias")
        or float(node.attributes.get("cubic_coeff_a", -0.75)) != -0.75
    ):
        raise UnsupportedFormError("antialiasing, or a cubic coefficient that is not -0.75")
    torch_mode = {"linear": "bilinear", "cubic": "bicubic"}[mode]
    if stays_open:
        factors = node.attributes["factors"]
        return Operator(rescale, tuple(factors), torch_mode, where == "align_corners")
    return Operator(resize, size, torch_mode, where == "align_corners")


def _require_floor(node: OnnxNode, where: str, is_upsample: bool) -> None:
    rounding = str(node.attributes.get("nearest_mode", "round_prefer_floor"))
    if not is_upsample and (where, rounding) != ("asymmetric", "floor"):
        raise UnsupportedFormError(
            f"nearest resizing by a fraction with {where} coordinates and {rounding}"
        )


@converts("HardSigmoid")
def _hard_sigmoid(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    alpha = float(node.attributes.get("alpha", 0.2))
    beta = float(node.attributes.get("beta", 0.5))
    if abs(alpha - 1 / 6) < 1e-4 and beta == 0.5:
        return nn.Hardsigmoid()
    return Operator(hard_sigmoid, alpha, beta)


def hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    """Clamp alpha * x + beta to 0..1."""
    return (alpha * x + beta).clamp(0.0, 1.0)


@converts("ThresholdedRelu")
def _thresholded(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    return nn.Threshold(float(node.attributes.get("alpha", 1.0)), 0.0)


@converts("HardSwish", "Mish", "Gelu")
def _activation(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    if node.operation_type == "Gelu":
        return nn.GELU(str(node.attributes.get("approximate", "none")))
    return nn.Hardswish() if node.operation_type == "HardSwish" else nn.Mish()


@converts("Softmax", "LogSoftmax")
def _softmax(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    axis = int(node.attributes.get("axis", -1))
    if node.attributes.get("flatten"):
        return Operator(softmax_from, axis, node.operation_type == "LogSoftmax")
    return nn.Softmax(axis) if node.operation_type == "Softmax" else nn.LogSoftmax(axis)


def softmax_from(x: Tensor, axis: int, logarithm: bool) -> Tensor:
    """Softmax over all axes from `axis` on, as before opset 13."""
    flat = x.flatten(axis)
    made = flat.log_softmax(-1) if logarithm else flat.softmax(-1)
    return made.reshape(x.shape)


@converts("PRelu")
def _prelu(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    slope = _required(node, graph, 1)
    sides = [side for side in slope.shape if side != 1]
    layer = nn.PReLU(slope.numel())
    layer.weight = nn.Parameter(slope.reshape(-1), requires_grad=False)
    is_of_channels = slope.ndim >= 3 and slope.shape[-3] == slope.numel()
    if len(sides) > 1 or (sides and not is_of_channels):
        raise UnsupportedFormError(f"has a slope of shape {list(slope.shape)}")
    return layer


@converts("CumSum")
def _cumulative_sum(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    if node.attributes.get("exclusive") or node.attributes.get("reverse"):
        raise UnsupportedFormError("sums from the end, or without the element itself")
    return Operator(torch.cumsum, int(_required(node, graph, 1)))


@converts("LpNormalization")
def _lp_normalization(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    stated = node.attributes
    return Operator(normalize, float(stated.get("p", 2)), int(stated.get("axis", -1)))


def normalize(x: Tensor, p: float, axis: int) -> Tensor:
    """Divide by the p-norm along an axis; zeros stay zeros."""
    return F.normalize(x, p, axis)


@converts("DepthToSpace")
def _depth_to_space(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    block = int(node.attributes["blocksize"])
    if str(node.attributes.get("mode", "DCR")) == "CRD":
        return nn.PixelShuffle(block)
    return Operator(depth_to_space, block)


def depth_to_space(x: Tensor, block: int) -> Tensor:
    """Channels [block, block, rest] to pixels, as TensorFlow orders them."""
    count, channels, height, width = x.shape
    rest = channels // block**2
    x = x.reshape(count, block, block, rest, height, width).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(count, rest, height * block, width * block)


@converts("SpaceToDepth")
def _space_to_depth(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    return Operator(space_to_depth, int(node.attributes["blocksize"]))


def space_to_depth(x: Tensor, block: int) -> Tensor:
    """Pixels to channels [block, block, channels]."""
    count, channels, height, width = x.shape
    x = x.reshape(count, channels, height // block, block, width // block, block)
    x = x.permute(0, 3, 5, 1, 2, 4)
    return x.reshape(count, channels * block**2, height // block, width // block)


class Attention(nn.Module):
    """softmax(scale * Q K^T + mask) V, fused; [N, heads, tokens, channels]."""

    def __init__(self, scale: float | None, is_causal: bool) -> None:
        super().__init__()
        self.scale, self.is_causal = scale, is_causal

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend; `mask` is added to the scores, or hides keys where it is false."""
        return F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=self.is_causal, scale=self.scale
        )


@converts("Attention", inputs=4)
def _attention(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    stated = node.attributes
    if len(node.input_values) > 4 or len(node.output_values) > 1:
        raise UnsupportedFormError("keeps keys and values, or returns more than its product")
    if stated.get("q_num_heads") or stated.get("kv_num_heads"):
        raise UnsupportedFormError("does not have its heads on an axis of their own")
    if stated.get("softcap"):
        raise UnsupportedFormError("caps its scores")
    scale = stated.get("scale")
    return Attention(None if scale is None else float(scale), bool(stated.get("is_causal")))
