"""Files of weights: what may be in them."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

import torch
from huggingface_hub import constants
from hypothesis import strategies as st
from safetensors.torch import save

from reptrt.calibrators.channels.file import load_factors
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.reconstruction.checkpoint import load_block
from reptrt.calibrators.state import load_calibration, read_result, save_tensors
from reptrt.models.registry import find_model
from reptrt.models.weights.checkpoint import read_checkpoint
from tests.hostile.border import Border, json_like
from tests.hostile.strategies import NAMES, damaged, documents, json_text
from tests.tiny_networks import calibrated


def state() -> dict[str, torch.Tensor]:
    return {"a.weight": torch.ones(4, 3), "b": torch.arange(4)}


FACTS: dict[str, object] = {
    "classes": ["a", "b"], "image_size": [32, 32], "mean": [0.5, 0.5, 0.5], "std": [1.0, 1.0, 1.0]
}  # fmt: skip


@st.composite
def safetensors_files(draw: st.DrawFn) -> bytes:
    if draw(st.booleans()):
        facts = draw(documents(FACTS))
        texts = (
            {str(k).encode("utf-8", "replace").decode(): json_text(v) for k, v in facts.items()}
            if isinstance(facts, dict)
            else {}
        )
        return bytes(save(state(), texts))
    tensor: dict[str, object] = {"dtype": "F32", "shape": [4, 3], "data_offsets": [0, 48]}
    header = draw(documents({"a": tensor, "__metadata__": {"classes": '["x"]'}}))
    text = json_text(header).encode("utf-8", "surrogatepass")
    return draw(damaged(struct.pack("<Q", len(text)) + text + bytes(48)))


@st.composite
def torch_files(draw: st.DrawFn, is_new: bool) -> bytes:
    facts = draw(documents(FACTS))
    content = {"state_dict": state(), **(facts if isinstance(facts, dict) else {"classes": facts})}
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=is_new)
    return draw(damaged(buffer.getvalue()))


TABLE: dict[str, object] = {"config": {"w": {
    "path_name": "weight_0", "is_param": True, "use_pickle": False,
    "tensor_meta": {"dtype": 7, "sizes": [{"as_int": 4}, {"as_int": 3}],
                    "strides": [{"as_int": 3}, {"as_int": 1}], "storage_offset": {"as_int": 0}},
}}}  # fmt: skip


@st.composite
def exported_programs(draw: st.DrawFn) -> bytes:
    """What `torch.export.save` writes, with other tables of weights."""
    buffer = io.BytesIO()
    pack = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    with zipfile.ZipFile(buffer, "w", pack) as archive:
        archive.writestr("m/archive_format", "pt2")
        archive.writestr("m/data/weights/model_weights_config.json", draw(json_like(TABLE)))
        archive.writestr("m/data/weights/weight_0", bytes(draw(st.sampled_from([48, 48, 0, 47]))))
    return draw(st.one_of(st.just(buffer.getvalue()), damaged(buffer.getvalue())))


HUB_CONFIG: dict[str, object] = {
    "architecture": "test_byobnet", "num_classes": 7,
    "pretrained_cfg": {
        "input_size": [3, 96, 96], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "crop_pct": 0.9,
        "interpolation": "bicubic", "crop_mode": "center", "license": "mit", "url": "https://x.y/z",
        "num_classes": 7, "fixed_input_size": False, "file": "/etc/passwd",
    },
}  # fmt: skip
_COMMIT = "0" * 40


def _find_on_hub(path: Path) -> object:
    """Read `config.json` as the hub's client would have left it in its cache."""
    cache_folder = path.parents[3]
    (path.parents[2] / "refs").mkdir(exist_ok=True)
    (path.parents[2] / "refs" / "main").write_text(_COMMIT)
    usual, constants.HF_HUB_CACHE = constants.HF_HUB_CACHE, str(cache_folder)
    try:
        return find_model("hf-hub:someone/net")
    finally:
        constants.HF_HUB_CACHE = usual


# What a workspace holds


BLOCK = ["0.weight", "0.bias", "weight_quantizers.0.scale", "activation_quantizers.relu.scale"]
FIT: dict[str, object] = {
    "name": "0", "stage": 2, "before": 0.5, "after": 0.25, "seconds": 1.5, "steps": 3, "batch_size": 2,
    "snr_db": 30.0, "reason": "",
}  # fmt: skip
RESULT: dict[str, object] = {
    "method": "minmax", "notes": {"Noise": "3 dB"}, "num_samples": 3, "snr_db": 30.0,
    "blocks": [FIT], "compared": {"minmax": 30.0},
}  # fmt: skip


@cache
def _calibrated() -> QuantizedModel:
    return calibrated("plain")


@cache
def _read_into() -> QuantizedModel:
    return calibrated("plain")


@st.composite
def calibration_files(draw: st.DrawFn) -> bytes:
    model = _calibrated()
    grids = {
        "activations": {k: asdict(one.grid) for k, one in model.activation_quantizers.items()},
        "weights": {k: asdict(one.grid) for k, one in model.weight_quantizers.items()},
    }
    texts = {"grids": json.dumps(grids), "result": json.dumps(RESULT)}
    key, like = draw(st.sampled_from([("grids", grids), ("result", RESULT)]))
    texts[key] = draw(json_like(like)).decode("utf-8", "replace")
    names = list(model.graph_module.state_dict())
    return draw(st.one_of(st.just(_saved(names, texts)), damaged(_saved(names, texts))))


@st.composite
def block_files(draw: st.DrawFn) -> bytes:
    text = draw(json_like(FIT)).decode("utf-8", "replace")
    return draw(
        st.one_of(st.just(_saved(BLOCK, {"fit": text})), damaged(_saved(BLOCK, {"fit": text})))
    )


def _saved(names: Sequence[str], metadata: dict[str, str]) -> bytes:
    return bytes(save(save_tensors(_calibrated(), names), metadata))


def _read_calibration(path: Path) -> object:
    load_calibration(_read_into(), path)
    return read_result(path)


@st.composite
def factor_files(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from([torch.float32, torch.float16, torch.int64, torch.float64]))
    value = draw(st.sampled_from([1.0, 0.5, 0.0, -1.0, float("nan"), float("inf")]))
    shape = draw(st.sampled_from([(8,), (8,), (), (0,), (2, 4)]))
    return draw(damaged(save({draw(NAMES) or "x": torch.full(shape, value).to(kind)})))


BORDERS: dict[str, Border] = {
    "safetensors": Border("w.safetensors", safetensors_files(), read_checkpoint),
    "torch file": Border("w.pt", torch_files(is_new=True), read_checkpoint),
    "old torch file": Border("w.pt", torch_files(is_new=False), read_checkpoint),
    "exported program": Border("w.pt2", exported_programs(), read_checkpoint),
    "config.json of the hub": Border(
        f"hub/models--someone--net/snapshots/{_COMMIT}/config.json",
        json_like(HUB_CONFIG),
        _find_on_hub,
    ),
    "calibration": Border("calibration.safetensors", calibration_files(), _read_calibration),
    "block": Border(
        "b.safetensors", block_files(), lambda path: load_block(_read_into(), BLOCK, path)
    ),
    "factors of channels": Border("channels.safetensors", factor_files(), load_factors),
}
