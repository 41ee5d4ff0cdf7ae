"""ONNX files that are quantized already: taken as they are, compared, shipped, or quantized anew."""

from __future__ import annotations

import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

import reptrt
from reptrt.engines.foreign.text import one_line
from reptrt.engines.runtime.runners import OnnxRuntimeRunner
from reptrt.models.onnx_import.data import OnnxFileError
from reptrt.models.onnx_import.file import read_onnx
from reptrt.pipeline.deploy.kit import make_kit
from reptrt.pipeline.open_run import Caller, open_run
from reptrt.pipeline.quantized_file import (
    FloatOrigin,
    imply_float,
    is_quantized,
    stores_weights_only,
)
from reptrt.pipeline.recipe import RecipeError, load_recipe

NET = """<ir_version: 9, opset_import: ["": 17]>
net (float[N,3,24,24] x) => (float[N,10] logits) {
    a = Conv<pads=[1,1,1,1]>(x, w1, b1)
    r = Relu(a)
    m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)
    c = Conv<pads=[1,1,1,1]>(m, w2, b2)
    k = Clip(c, low, high)
    s = Add(k, m)
    g = GlobalAveragePool(s)
    f = Flatten(g)
    logits = Gemm<transB=1>(f, w3, b3)
}"""
SHAPES = [(8, 3, 3, 3), (8, 8, 3, 3), (10, 8)]


class Images(CalibrationDataReader):
    def __init__(self) -> None:
        self._images = iter(images(8, seed=1))

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self._images, None)
        return None if image is None else {"x": image[None]}


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, 24, 24)).astype(np.float32)


@dataclass(frozen=True)
class Files:
    floats: Path
    pairs: Path
    operators: Path
    dynamic: Path
    images: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder, rng = tmp_path_factory.mktemp("quantized"), np.random.default_rng(0)
    model = onnx.parser.parse_model(NET)
    constants = {"low": np.float32(0), "high": np.float32(6)}
    for index, shape in enumerate(SHAPES, 1):
        weight = rng.normal(size=shape) / np.prod(shape[1:]) ** 0.5
        constants[f"w{index}"] = 2 * weight.astype(np.float32)
        constants[f"b{index}"] = rng.normal(size=shape[0]).astype(np.float32)
    for name, value in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    for node in model.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    made = Files(
        *(folder / f"{name}.onnx" for name in ("float", "pairs", "operators", "dynamic")),
        folder / "images.npy",
    )
    onnx.save(model, made.floats)
    quantize_static(made.floats, made.pairs, Images(), per_channel=True)
    quantize_static(
        made.floats,
        made.operators,
        Images(),
        quant_format=QuantFormat.QOperator,
        activation_type=QuantType.QUInt8,
        reduce_range=True,  # without VNNI, ONNX Runtime saturates sums of products
    )
    quantize_dynamic(made.floats, made.dynamic)
    np.save(made.images, images(8))
    return made


def run_quantized(files: Files, name: str, folder: Path, **options: object) -> reptrt.Result:
    return reptrt.quantize(
        str(getattr(files, name)), files.images, target="cpu", workspace=folder, **options
    )


def snr_db(expected: np.ndarray, actual: np.ndarray) -> float:
    return 10 * float(np.log10(np.square(expected).sum() / np.square(expected - actual).sum()))


def infer(path: Path, values: np.ndarray) -> np.ndarray:
    with OnnxRuntimeRunner(path, optimize=False) as runner:
        (name,) = runner.input_metadata
        return runner.infer({name: values})["logits"]


@pytest.mark.parametrize("name", ["pairs", "operators"])
def test_a_quantized_file_keeps_its_scales_and_says_what_it_was_compared_with(
    files, name, tmp_path
):
    result = run_quantized(files, name, tmp_path)
    report = result.report
    assert (report.calibrator, report.num_samples, report.reference) == (None, 0, "file")
    assert report.numerics["logits"].snr_db > 35
    assert report.fusion.int8_layers == report.fusion.quantizable_layers == 3
    assert "quantized file itself" in report.notes[0]
    assert not result.workspace.calibration.exists()
    values = images(8, seed=2)
    assert snr_db(infer(getattr(files, name), values), infer(result.onnx, values)) > 35
    assert json.loads(result.workspace.report_json.read_text())["calibrator"] is None


def test_a_given_float_model_is_the_reference(files, tmp_path):
    report = run_quantized(files, "pairs", tmp_path, float_model=files.floats).report
    assert report.reference == "float"
    assert report.file_numerics["logits"].snr_db > 35  # against the file as it came
    assert 15 < report.numerics["logits"].snr_db < report.file_numerics["logits"].snr_db
    assert [layer.layer for layer in report.layers] == ["Conv_a", "Conv_c", "Gemm_logits"]
    assert all(layer.snr_db > 15 for layer in report.layers)


@pytest.mark.parametrize(("name", "least"), [("pairs", 30), ("operators", 25), ("dynamic", 30)])
def test_the_implied_float_network_is_the_one_that_was_quantized(files, name, least, tmp_path):
    file = read_onnx(getattr(files, name))
    assert is_quantized(file)
    implied = imply_float(file)
    assert not is_quantized(implied)
    onnx.save(implied.proto, tmp_path / "implied.onnx")
    values = 3 * images(8, seed=2)  # beyond the grids, up to where the Clip holds
    assert snr_db(infer(files.floats, values), infer(tmp_path / "implied.onnx", values)) > least


def test_requantize_calibrates_the_implied_float_network(files, tmp_path):
    report = run_quantized(files, "pairs", tmp_path, requantize=True, calibrator="minmax").report
    assert (report.calibrator, report.reference) == ("minmax", "float")
    assert report.numerics["logits"].snr_db > 20


def test_a_kit_of_a_quantized_file_holds_its_repaired_file(files, tmp_path):
    recipe = load_recipe(str(files.pairs), {"target": "jetson-orin", "data": files.images})
    with open_run(recipe, tmp_path, Caller("test")) as run:
        archive = make_kit(run)
    with tarfile.open(archive) as kit:
        (name,) = [name for name in kit.getnames() if name.endswith("manifest.json")]
        manifest = json.load(kit.extractfile(name))
    assert manifest["run"]["calibrator"] is None
    assert set(manifest["layers"].values()) == {"int8"}


def test_dynamic_quantization_is_explained_in_one_line(files, tmp_path):
    with pytest.raises(OnnxFileError, match=r"dynamic quantization.*`requantize`") as caught:
        run_quantized(files, "dynamic", tmp_path)
    assert str(caught.value) == one_line(str(caught.value), 1000)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("pairs", {"calibrator": "mse"}, "leave `calibrator` out"),
        ("pairs", {"weight_bits": 6, "precision": "fp16"}, "leave `precision`, `weight_bits` out"),
        ("floats", {"requantize": True}, "this one is not"),
    ],
)
def test_options_that_a_file_leaves_no_room_for_are_refused(files, name, options, reason, tmp_path):
    with pytest.raises((RecipeError, OnnxFileError), match=reason):
        run_quantized(files, name, tmp_path, **options)


def test_a_float_model_that_is_quantized_too_is_refused(files, tmp_path):
    with pytest.raises(OnnxFileError, match="is quantized too"):
        run_quantized(files, "pairs", tmp_path, float_model=files.pairs)


def test_options_of_quantized_files_are_refused_for_other_models():
    with pytest.raises(RecipeError, match="for ONNX files that are quantized already"):
        load_recipe("yolov6n_demo", {"requantize": True})


def test_a_file_that_stores_its_weights_in_int8_is_a_float_file(tmp_path: Path) -> None:
    codes = ", ".join(str(i % 251 - 125) for i in range(4 * 27))
    text = f"""<ir_version: 9, opset_import: ["": 17]> net (float[N,3,8,8] x) => (float y)
        <int8[4,3,3,3] codes = {{{codes}}}, float s = {{0.01}}, int8 z = {{0}}> {{
        w = DequantizeLinear(codes, s, z) y = Conv(x, w) }}"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    file = read_onnx(tmp_path / "m.onnx")
    assert is_quantized(file)
    assert stores_weights_only(file)
    float_file = FloatOrigin()(file)
    assert float_file is not None
    assert not float_file.keeps_scales
    assert [node.op_type for node in float_file.file.proto.graph.node] == ["Conv"]
