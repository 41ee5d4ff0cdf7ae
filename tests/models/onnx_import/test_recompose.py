"""A LayerNorm in parts becomes one again, and what only looks like one stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from reptrt.models.graph import trace
from reptrt.models.onnx_import.file import read_onnx
from reptrt.models.onnx_import.importer import ImportedNetwork, import_onnx
from tests.onnx_files import SIDE, from_text, seeded, write_onnx
from tests.tiny_transformers import with_outliers

SQUARE = "s = Pow(d, two)"
NORM = f"""
    m = ReduceMean<axes = [-1]>(x)
    d = Sub(x, m)
    {SQUARE}
    v = ReduceMean<axes = [-1]>(s)
    e = Add(v, epsilon)
    r = Sqrt(e)
    q = Div(d, r)
    g = Mul(q, gamma)
    n = Add(g, beta)
"""
CONSTANTS = "float two = {2}, float one = {1}, float epsilon = {0.01},"
VECTORS = "float[4] gamma = {1, -2, 3, 0.5}, float[4] beta = {1, 0, -1, 2}"


def _import(path: Path) -> ImportedNetwork:
    file = read_onnx(path)
    return import_onnx(file, file.image_size(None))


def _norms(network: ImportedNetwork) -> list[str]:
    """Names of the gains of the LayerNorms of the recorded graph."""
    graph = trace(network.module, (SIDE, SIDE), batch_size=network.batch_size).graph
    kind = torch.ops.aten.layer_norm.default
    return [str(node.args[2].target) for node in graph.nodes if node.target is kind]


def _written(body: str, path: Path, opset: int = 16, vectors: str = VECTORS) -> ImportedNetwork:
    """A file whose only operators are `body`, from x [N, 3, 6, 4] to y, imported."""
    text = f"""<ir_version: 8, opset_import: ["": {opset}]>
        net (float[N,3,6,4] x) => (float y) <{CONSTANTS} {vectors}> {{ {body} y = Relu(n) }}"""
    return _import(from_text(text, path))


def _has_norm(network: ImportedNetwork) -> bool:
    return any(isinstance(part, nn.LayerNorm) for part in network.module.modules())


def _vit() -> nn.Module:
    module = timm.models.VisionTransformer(
        img_size=SIDE, patch_size=16, embed_dim=16, depth=1, num_heads=2, num_classes=5
    )
    return with_outliers(module)


@pytest.mark.parametrize("opset", [14, 17])
def test_a_transformer_of_any_opset_has_its_norms_by_name(opset: int, tmp_path: Path) -> None:
    reference = seeded(_vit)  # type: ignore[arg-type]  # called as a class would be
    network = _import(write_onnx(reference, tmp_path / "m.onnx", opset=opset))
    assert _norms(network) == ["blocks.0.norm1.weight", "blocks.0.norm2.weight", "norm.weight"]
    images = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(network.module(images), reference(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", ""),
        (SQUARE, "s = Mul(d, d)"),
        (SQUARE, "d2 = Sub(x, m) s = Pow(d2, two)"),
        ("Mul(q, gamma)", "Mul(gamma, q)"),
        ("Add(g, beta)", "Add(beta, g)"),
        ("Add(v, epsilon)", "Add(epsilon, v)"),
        ("m = ReduceMean<axes = [-1]>(x)", "m = ReduceMean<axes = [3]>(x)"),
    ],
    ids=["pow", "mul", "mean twice", "gain first", "shift first", "epsilon first", "axis 3"],
)
def test_a_norm_in_parts_is_one(old: str, new: str, tmp_path: Path) -> None:
    network = _written(NORM.replace(old, new) if old else NORM, tmp_path / "m.onnx")
    (norm,) = (part for part in network.module.modules() if isinstance(part, nn.LayerNorm))
    assert norm.eps == pytest.approx(0.01)
    assert norm.weight.tolist() == [1, -2, 3, 0.5]
    assert norm.bias.tolist() == [1, 0, -1, 2]


def test_axes_may_be_an_input_as_from_opset_18_on(tmp_path: Path) -> None:
    body = NORM.replace("<axes = [-1]>(x)", "(x, a)").replace("<axes = [-1]>(s)", "(s, a)")
    network = _written(f"a = Constant<value_ints = [-1]>() {body}", tmp_path / "m.onnx", 18)
    assert _has_norm(network)


def test_what_others_read_stays_beside_it(tmp_path: Path) -> None:
    body = NORM.replace("n = Add", "w = Add") + "n = Add(w, d)"
    network = _written(body, tmp_path / "m.onnx")
    assert _has_norm(network)
    x = torch.randn(2, 3, 6, 4, generator=torch.Generator().manual_seed(0))
    gain, shift = torch.tensor([1, -2, 3, 0.5]), torch.tensor([1.0, 0, -1, 2])
    normalized = nn.functional.layer_norm(x, (4,), gain, shift, 0.01)
    torch.testing.assert_close(network.module(x), torch.relu(normalized + x - x.mean(-1, True)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Pow(d, two)", "Pow(d, one)"),
        ("Pow(d, two)", "Pow(x, two)"),
        ("Pow(d, two)", "Pow(two, d)"),
        ("Pow(d, two)", "Mul(d, x)"),
        ("v = ReduceMean<axes = [-1]>(s)", "v = ReduceMean<axes = [2]>(s)"),
        ("v = ReduceMean<axes = [-1]>(s)", "v = ReduceMax<axes = [-1]>(s)"),
        ("m = ReduceMean<axes = [-1]>(x)", "m = ReduceMean<axes = [2]>(x)"),
        ("m = ReduceMean<axes = [-1]>(x)", "m = ReduceMean<axes = [2, 3]>(x)"),
        ("m = ReduceMean<axes = [-1]>(x)", "i = Relu(x) m = ReduceMean<axes = [-1]>(i)"),
        ("d = Sub(x, m)", "d = Add(x, m)"),
        ("e = Add(v, epsilon)", "u = Add(v, epsilon) e = Add(u, u)"),
        ("q = Div(d, r)", "q = Div(x, r)"),
        ("q = Div(d, r)", "z = Add(d, two) q = Div(r, z)"),
        ("g = Mul(q, gamma)", "g = Mul(q, one)"),
        ("g = Mul(q, gamma)", "g = Mul(q, q)"),
        ("n = Add(g, beta)", "n = Add(g, x)"),
    ],
)
def test_anything_else_stays_in_parts(old: str, new: str, tmp_path: Path) -> None:
    assert old in NORM
    body = NORM.replace(old, new)
    assert not _has_norm(_written(body, tmp_path / "m.onnx"))
