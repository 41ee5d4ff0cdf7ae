"""What a calibrator learned, in the exported file: the same codes, and no operator more."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from reptrt.calibrators.guard import Guard
from reptrt.calibrators.histogram.methods import MinMaxCalibrator
from reptrt.calibrators.quantized.biases import round_biases
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.reconstruction.across_block import AcrossBlockCalibrator
from reptrt.calibrators.settings import Reconstruction, Settings
from reptrt.models.card import ModelCard
from reptrt.models.spec import Preprocess
from reptrt.pipeline.export.export import export_qdq
from tests.onnx_codes import agreement, forced_codes, largest_step, onnx_codes, snr_db, torch_codes
from tests.reconstructing import batches, learn_gently, with_outliers
from tests.tiny_networks import SIZE, quantized, smooth_images

PREPROCESS = Preprocess((SIZE, SIZE), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
CARD = ModelCard("toy", "classification", PREPROCESS, 10, None, ("logits",))
LEARN_ALL = Settings(reconstruction=Reconstruction(iterations=100, batch_size=16), effort="high")


gentle = pytest.fixture(scope="module", autouse=True)(learn_gently)


@dataclass(frozen=True)
class Files:
    model: QuantizedModel
    learned: onnx.ModelProto
    min_max: onnx.ModelProto
    num_dropped_relus: int
    gained: dict[str, bool]  # block -> whether learning made it better, by its first layer


@pytest.fixture(scope="module", params=[(8, 8), (6, 6)], ids=["w8a8", "w6a6"])
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder, bits = tmp_path_factory.mktemp("onnx"), request.param
    learned, plain = quantized(with_outliers(), bits), quantized(with_outliers(), bits)
    with pytest.MonkeyPatch.context() as patch:  # what was learned is kept, be it better or not
        patch.setattr(Guard, "keep_better", lambda self, method: (method, {}))
        result = AcrossBlockCalibrator(LEARN_ALL).calibrate(learned, batches(64))
    MinMaxCalibrator().calibrate(plain, batches(64))
    protos = []
    for model in (learned, plain):
        round_biases(model)
        export_qdq(model, folder / "model.onnx", CARD)
        protos.append(onnx.load(folder / "model.onnx"))
    gained = {fit.name: fit.after < fit.before for fit in result.blocks}
    return Files(learned, *protos, int(bits == (8, 8)), gained)


def operators(proto: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in proto.graph.node)


def test_onnx_runtime_computes_pytorchs_codes(files: Files) -> None:
    images = smooth_images(128, seed=5)
    codes, (logits,) = torch_codes(files.model, files.learned, images)
    assert len(codes) == 5
    assert all(np.unique(array).size >= 8 for array in codes.values())
    actual, (outputs,) = onnx_codes(files.learned, images, optimized=False)
    assert agreement(actual, codes) >= 0.999
    # Where a value lies between two codes, one rounding decides; its image is another one then.
    equal = np.logical_and.reduce([
        (actual[name] == codes[name]).reshape(len(images), -1).all(1) for name in codes
    ])  # fmt: skip
    assert equal.mean() >= 0.8
    assert snr_db(outputs[equal], logits[equal]) >= 60
    forced, (outputs,) = forced_codes(files.learned, images, codes, optimized=True)
    assert largest_step(forced, codes) <= 1
    assert agreement(forced, codes) >= 0.999
    assert snr_db(outputs, logits) >= 60


def test_the_optimized_network_agrees_end_to_end(files: Files) -> None:
    images = smooth_images(128, seed=5)
    _, (logits,) = torch_codes(files.model, files.learned, images)
    _, (outputs,) = onnx_codes(files.learned, images, optimized=True)
    assert snr_db(outputs, logits) >= 35
    assert np.mean(outputs.argmax(1) == logits.argmax(1)) >= 0.99


def test_the_graph_is_that_of_a_baseline_but_for_dropped_relus(files: Files) -> None:
    dropped = operators(files.min_max) - operators(files.learned)
    assert dropped == Counter({"Relu": files.num_dropped_relus} if files.num_dropped_relus else {})
    assert not operators(files.learned) - operators(files.min_max)


def test_exported_weights_are_the_learned_codes(files: Files) -> None:
    constants = {t.name: numpy_helper.to_array(t) for t in files.learned.graph.initializer}
    baseline = {t.name: numpy_helper.to_array(t) for t in files.min_max.graph.initializer}
    num_learned = 0
    for layer, quantizer in files.model.weight_quantizers.items():
        weight = files.model.weight_of(layer).detach()
        codes = constants[f"{layer}.weight_codes"]
        np.testing.assert_array_equal(codes, quantizer.quantize(weight).numpy())
        if not files.gained[max(block for block in files.gained if block <= layer)]:
            continue  # learning made this block worse: it kept its start
        num_learned += 1
        scale = quantizer.scale.view(-1, *[1] * (weight.ndim - 1)).numpy()
        np.testing.assert_array_equal(codes * scale, weight.numpy())
        assert np.abs(codes).max() <= quantizer.grid.quant_max
        assert (codes != baseline[f"{layer}.weight_codes"]).any()
    assert num_learned >= 2
