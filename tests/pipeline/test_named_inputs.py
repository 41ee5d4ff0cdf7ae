"""Networks that read something else than one image in the usual layout, through the whole pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import reptrt
from reptrt.calibrators.channels.choose import choose_factors
from reptrt.calibrators.channels.rewrite import scale_channels
from reptrt.calibrators.first_order import sample_noise
from reptrt.calibrators.histogram.methods import MinMaxCalibrator
from reptrt.models.inputs import InputError
from reptrt.models.load import load_model, load_module
from reptrt.models.spec import PreprocessOverrides
from reptrt.models.task import OutputError, list_outputs
from reptrt.pipeline.data.torch_batches import as_batch
from reptrt.pipeline.export.prepare import record_network
from reptrt.pipeline.plan import fixed_batch
from reptrt.pipeline.recipe import Recipe
from tests.named_inputs import BATCHES, KINDS, OPEN_SIZES, random_feed, write_network
from tests.tiny_networks import quantized

LEAST_DB = 30.0


def stored(folder: Path, network: Path) -> Path:
    """Four feeds of two samples; where an input has no open side, of one."""
    folder.mkdir()
    for seed in range(4):
        np.savez(folder / f"{seed}.npz", **random_feed(network, 2, seed))  # type: ignore[arg-type]
    return folder


def run_file(network: Path, feed: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float32]:
    (found,) = onnxruntime.InferenceSession(network.read_bytes()).run(None, dict(feed))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_input_is_imported_as_the_file_has_it(tmp_path: Path, kind: str) -> None:
    network = write_network(KINDS[kind], tmp_path / "net.onnx")
    feed = random_feed(network, 3, seed=9)
    loaded = load_model(str(network), feed=feed)
    if loaded.inputs[0].name == "images":
        values = [feed["x"].transpose(0, 3, 1, 2).astype(np.float32)]
    else:
        values = [feed[one.name] for one in loaded.inputs]
        assert [one.dtype for one in loaded.inputs] == [value.dtype.name for value in feed.values()]
    found = loaded.module(*map(torch.from_numpy, values))
    np.testing.assert_allclose(found.numpy(), run_file(network, feed), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["an image and a number that the batch shares", "token numbers"])
def test_named_inputs_end_in_int8_that_is_close_to_the_file(tmp_path: Path, kind: str) -> None:
    network = write_network(KINDS[kind], tmp_path / "net.onnx")
    result = reptrt.quantize(
        str(network), stored(tmp_path / "feeds", network), target="cpu", calibrator="minmax",
        quantize="all", quantize_head=True, num_samples=8, workspace=tmp_path / "build", progress=False,
    )  # fmt: skip
    (numerics,) = result.report.numerics.values()
    assert numerics.snr_db >= LEAST_DB
    feed = random_feed(network, 3, seed=9)
    found = run_file(result.workspace.fp32_onnx, feed)
    np.testing.assert_allclose(found, run_file(network, feed), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "kind",
    [
        "an image and a vector",
        "an image and a number that the batch shares",
        "token numbers",
        "video",
    ],
)
def test_channels_of_named_inputs_are_scaled_and_their_noise_is_estimated(
    tmp_path: Path, kind: str
) -> None:
    network = write_network(KINDS[kind], tmp_path / "net.onnx")
    feeds = [random_feed(network, 3, seed) for seed in (0, 1)]
    loaded = load_model(str(network), feed=feeds[0])
    model = quantized(record_network(loaded).float_graph)
    batches = [as_batch(feed, loaded.inputs, "cpu") for feed in feeds]
    with model.float_mode():
        (expected,) = model(batches[0])
        scale_channels(model, choose_factors(model, batches, product_gain=-100.0))
        torch.testing.assert_close(model(batches[0])[0], expected)
    MinMaxCalibrator().calibrate(model, batches)
    samples = sample_noise(model, batches[0])
    assert all(samples.noise([layer]) > 0 for layer in model.weight_quantizers)


@pytest.mark.parametrize("kind", OPEN_SIZES)
def test_sizes_between_smallest_and_largest_give_what_the_file_gives(
    tmp_path: Path, kind: str
) -> None:
    network = write_network(OPEN_SIZES[kind], tmp_path / "net.onnx")
    stated = PreprocessOverrides((32, 32), smallest=(16, 16), largest=(48, 64))
    loaded = load_model(str(network), overrides=stated)
    height = 16 if "width" in kind else 24
    images = np.random.default_rng(0).random((2, 3, height, 40), dtype=np.float32)
    found = loaded.module(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found, run_file(network, {"x": images}), rtol=1e-3, atol=1e-4)
    assert loaded.inputs[0].open_sides == ((2,) if "width" in kind else (1, 2))


def test_an_open_width_stays_open_in_the_files_and_is_measured_at_its_ends(tmp_path: Path) -> None:
    network = write_network(
        OPEN_SIZES["an open width that becomes a sequence"], tmp_path / "net.onnx"
    )
    pixels = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    result = reptrt.quantize(
        str(network), [pixels], target="cpu", calibrator="minmax", quantize="all", num_samples=8,
        dynamic_size=((16, 16), (16, 32), (16, 64)), workspace=tmp_path / "build", progress=False,
    )  # fmt: skip
    assert set(result.report.numerics) == {"y", "y at 16x16", "y at 16x64"}
    assert min(one.snr_db for one in result.report.numerics.values()) >= LEAST_DB
    images = np.random.default_rng(1).random((3, 3, 16, 40), dtype=np.float32)
    expected = run_file(network, {"x": images})
    found = run_file(result.workspace.fp32_onnx, {"images": images})
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_prepared_images_are_measured_in_their_own_size(tmp_path: Path) -> None:
    network = write_network(
        OPEN_SIZES["an open width that becomes a sequence"], tmp_path / "net.onnx"
    )
    images = np.random.default_rng(0).random((4, 3, 16, 32), dtype=np.float32)
    result = reptrt.quantize(
        str(network), images, target="cpu", calibrator="minmax", quantize="all",
        dynamic_size=((16, 16), (16, 32), (16, 64)), workspace=tmp_path / "build", progress=False,
    )  # fmt: skip
    assert set(result.report.numerics) == {"y"}


@pytest.mark.parametrize("what", BATCHES)
def test_a_batch_that_is_one_by_habit_is_opened(tmp_path: Path, what: str) -> None:
    network = write_network(BATCHES[what], tmp_path / "net.onnx")
    loaded = load_model(str(network))
    assert loaded.batch_size is None
    feed = random_feed(network, 1, seed=3)
    three = [
        torch.from_numpy(np.concatenate([feed[read.name]] * 3) if one.batched else feed[read.name])
        for one, read in zip(loaded.inputs, onnx.load(network).graph.input, strict=True)
    ]
    outputs = list_outputs(loaded.module(*three))
    found = (outputs if loaded.tail is None else loaded.tail.run(three, outputs))[0].numpy()
    axis = 1 if "in front" in what else 0
    assert found.shape[axis] == 3
    np.testing.assert_allclose(found.take([2], axis), run_file(network, feed), rtol=1e-3, atol=1e-4)


def test_a_batch_that_stays_fixed_is_an_error_where_another_is_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    graph = """net (float[n,3,8,8] x) => (float[4,6] y) <float[24,3,8,8] w0, int64[2] s = {4,6}> {
        a = Conv(x, w0) r = Relu(a) y = Reshape(r, s) }"""
    loaded = load_model(str(write_network(graph, tmp_path / "net.onnx")))
    assert (loaded.batch_size, loaded.task) == (1, "generic")  # [boxes, values] of one image
    assert "runs on batches of 1 only" in caplog.text
    assert "export the model" not in caplog.text  # its batch is open
    for option in ({"max_batch": 4}, {"batch_size": 2}):
        with pytest.raises(OutputError, match="cannot be met") as error:
            fixed_batch(loaded, Recipe(model="net.onnx", **option))
        assert "export" not in str(error.value)


class Fusion(nn.Module):
    """An image and a vector, which is optional."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.out = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(4, 8), nn.Linear(8, 5)

    def forward(self, image: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.conv(image).mean((2, 3)) + self.fc(state)))


def test_a_module_of_two_tensors_takes_a_loader_of_dicts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Fusion().eval()
    loader = [{"image": torch.rand(2, 3, 16, 16), "state": torch.rand(2, 4)} for _ in range(4)]
    result = reptrt.quantize(
        module, loader, target="cpu", calibrator="minmax", quantize="all", num_samples=8,
        workspace=tmp_path, progress=False,
        evaluate=lambda predict: float(predict(loader[0]).shape == (2, 5)),
    )  # fmt: skip
    assert result.report.accuracy is not None
    assert result.report.accuracy.quantized == 1
    assert [value.name for value in onnx.load(result.workspace.trt_onnx).graph.input] == [
        "image",
        "state",
    ]


def test_a_module_of_several_tensors_says_what_it_needs() -> None:
    with pytest.raises(InputError, match="reads image, state; give `data` with named feeds"):
        load_module(Fusion(), "fusion")
    with pytest.raises(
        InputError, match="forward takes image, state, and the data has image, mask"
    ):
        load_module(
            Fusion(), "fusion", feed={"image": np.ones((1, 3, 8, 8)), "mask": np.ones((1, 4))}
        )


def test_samples_tell_the_sides_that_a_file_leaves_open(tmp_path: Path) -> None:
    graph = KINDS["token numbers"].replace("int64[n,6] ids", "int64[n,length] ids")
    network = write_network(
        graph.replace("float[n,6,3] y", "float[n,length,3] y"), tmp_path / "n.onnx"
    )
    with pytest.raises(ValueError, match=r"leaves sides of its input 'ids' \?x\? open"):
        load_model(str(network))
    loaded = load_model(str(network), feed={"ids": np.ones((2, 9), np.int64)})
    assert [one.describe() for one in loaded.inputs] == ["ids: int64 [n, 9]"]
