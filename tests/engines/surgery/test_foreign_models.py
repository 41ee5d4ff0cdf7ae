"""What ONNX Runtime's own quantizer writes: after surgery it parses, builds, and stays accurate."""

from __future__ import annotations

import importlib.util

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from reptrt.engines.surgery import clean

# A Relu, a Clip, a concat of unequal ranges, a residual: all that asymmetric grids can absorb.
CNN = """net (float[1,3,16,16] images) => (float[1,10] logits) {
    a = Conv<pads=[1,1,1,1]>(images, w1, b1)
    r = Relu(a)
    m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)
    c = Conv<pads=[1,1,1,1]>(m, w2, b2)
    k = Clip(c, low, high)
    d = Conv<pads=[1,1,1,1]>(m, w3, b3)
    j = Concat<axis=1>(k, d)
    e = Conv(j, w4, b4)
    s = Add(e, m)
    g = GlobalAveragePool(s)
    f = Flatten(g)
    logits = Gemm<transB=1>(f, w5, b5)
}"""
SHAPES = [(8, 3, 3, 3), (8, 8, 3, 3), (8, 8, 3, 3), (8, 16, 1, 1), (10, 8)]
SETTINGS = {
    "default": {},
    "uint8": {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QUInt8},
    "per channel": {"per_channel": True, "activation_type": QuantType.QUInt8},
    "float weights": {
        "activation_type": QuantType.QUInt8,
        "weight_type": QuantType.QUInt8,
        "extra_options": {"AddQDQPairToWeight": True, "DedicatedQDQPair": True},
    },
}


class Images(CalibrationDataReader):
    def __init__(self) -> None:
        self._images = iter(images(seed=1))

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._images, None)


def images(seed: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"images": rng.normal(size=(1, 3, 16, 16)).astype(np.float32)} for _ in range(12)]


@pytest.fixture
def cnn(parse):
    rng = np.random.default_rng(0)
    weights = {
        f"w{i + 1}": rng.normal(size=s) / np.prod(s[1:]) ** 0.5 for i, s in enumerate(SHAPES)
    }
    biases = {f"b{i + 1}": rng.normal(size=s[0]) * 0.3 for i, s in enumerate(SHAPES)}
    return parse(CNN, opset=17, low=np.float32(0), high=np.float32(0.5), **weights, **biases)


@pytest.fixture(params=SETTINGS, ids=lambda name: name.replace(" ", "-"))
def quantized(request, cnn, tmp_path):
    onnx.save(cnn, tmp_path / "float.onnx")
    quantize_static(
        tmp_path / "float.onnx", tmp_path / "qdq.onnx", Images(), **SETTINGS[request.param]
    )
    return tmp_path / "qdq.onnx"


def snr_db(expected: np.ndarray, actual: np.ndarray) -> float:
    return 10 * np.log10(np.square(expected).sum() / np.square(expected - actual).sum())


def test_the_repaired_model_is_as_accurate_as_the_foreign_one(quantized, cnn, run_model, tmp_path):
    assert {node.op_type for node in onnx.load(quantized).graph.node}.isdisjoint({"Relu", "Clip"})
    clean(quantized, tmp_path / "trt.onnx")

    def outputs(model: onnx.ModelProto) -> np.ndarray:
        return np.stack([run_model(model, feed)[0] for feed in images(seed=2)])

    expected = outputs(cnn)
    foreign = snr_db(expected, outputs(onnx.load(quantized)))
    repaired = snr_db(expected, outputs(onnx.load(tmp_path / "trt.onnx")))
    # A symmetric grid has up to 255/127 larger steps: at most 6 dB. Lost clipping costs 20 dB.
    assert repaired > foreign - 6
    assert repaired > 30


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="needs tensorrt_rtx, the only TensorRT on PyPI that builds without a GPU",
)
def test_the_repaired_model_parses_and_builds_in_tensorrt_rtx(quantized, tmp_path):
    import tensorrt_rtx as trt

    def parses(path, build=False):
        builder = trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR))
        network = builder.create_network(0)
        parser = trt.OnnxParser(network, builder.logger)
        if not parser.parse(path.read_bytes()):
            return False
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM86, 0)
        return not build or builder.build_serialized_network(network, config) is not None

    assert not parses(quantized)
    clean(quantized, tmp_path / "trt.onnx")
    assert parses(tmp_path / "trt.onnx", build=True)
