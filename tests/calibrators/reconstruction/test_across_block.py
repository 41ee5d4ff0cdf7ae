from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import fx

from reptrt.calibrators.base import CalibrationResult
from reptrt.calibrators.histogram.best import BY_TENSOR, CANDIDATES
from reptrt.calibrators.histogram.methods import channel_amax
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.quantized.quantizers import IntegerGrid
from reptrt.calibrators.reconstruction import fit_block
from reptrt.calibrators.reconstruction import reconstruct as reconstruction
from reptrt.calibrators.reconstruction.across_block import grid_ends
from reptrt.calibrators.reconstruction.reconstruct import LearnedBlock
from reptrt.calibrators.registry import create_calibrator, list_calibrators
from reptrt.calibrators.settings import Reconstruction, Settings
from reptrt.calibrators.state import CalibrationFileError
from reptrt.models.graph import trace
from tests.reconstructing import (
    GIBIBYTE,
    Twice,
    baseline,
    batches,
    differing,
    learn_gently,
    state_of,
    with_outliers,
)
from tests.tiny_networks import NETWORKS, SIZE, quantized, randomize, smooth_images, traced

SHORT = Reconstruction(iterations=6, batch_size=8)
LONG = Reconstruction(iterations=40, batch_size=16)
IMAGES = 64

thorough = partial(Settings, effort="high")
"""Whatever does not concern the effort learns all steps of all blocks."""


gentle = pytest.fixture(scope="module", autouse=True)(learn_gently)


def learn(
    settings: Settings,
    method: str = "repapq",
    make: Callable[[], fx.GraphModule] = with_outliers,
    bits: tuple[int, int] = (6, 6),
) -> tuple[QuantizedModel, CalibrationResult]:
    model = quantized(make(), bits)
    return model, create_calibrator(method, settings).calibrate(model, batches(IMAGES))


def snrs(result: CalibrationResult) -> dict[str, float]:
    return dict(result.compared)


@pytest.fixture(scope="module")
def short() -> dict[str, torch.Tensor]:
    """State after a short, uninterrupted run in memory."""
    return state_of(learn(thorough(reconstruction=SHORT))[0])


@pytest.fixture(scope="module")
def long() -> tuple[QuantizedModel, CalibrationResult]:
    """A longer run; tests must not change its model."""
    return learn(thorough(reconstruction=LONG))


@pytest.fixture(scope="module")
def finished_blocks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CalibrationResult]:
    """Folder of the blocks of a short run, and its result; tests work on copies."""
    folder = tmp_path_factory.mktemp("blocks")
    return folder, learn(thorough(reconstruction=SHORT, checkpoint=folder))[1]


def test_with_outliers_it_beats_every_baseline_at_6_bits(
    long: tuple[QuantizedModel, CalibrationResult],
) -> None:
    model, result = long
    found = snrs(result)
    assert result.method == "repapq"
    baselines = [*(candidate.name for candidate in CANDIDATES), BY_TENSOR]
    assert list(found) == ["repapq", *baselines, "gptq"]
    assert found["repapq"] > max(found[name] for name in baselines) + 1
    assert found["repapq"] > found["gptq"]
    assert result.starts.keys() == model.activation_quantizers.keys()
    assert any(ends != grid_ends(model)[name] for name, ends in result.starts.items())
    assert [fit.name for fit in result.blocks] == [
        *("0.rbr_reparam", "1.rbr_reparam", "2.reparam_conv", "6")
    ]
    assert [fit.stage for fit in result.blocks] == [0, 0, 1, 1]
    before, after = (
        sum(getattr(fit, when) for fit in result.blocks) for when in ("before", "after")
    )
    assert after < 0.95 * before
    gained = [fit for fit in result.blocks if fit.after < fit.before]
    assert gained
    for name, quantizer in model.weight_quantizers.items():
        block = [fit for fit in result.blocks if fit.name <= name][-1]
        if block in gained:  # the others are as they were
            assert torch.equal(quantizer(model.weight_of(name)), model.weight_of(name))


def test_unseen_images_come_out_better_too(
    long: tuple[QuantizedModel, CalibrationResult],
) -> None:
    images, noise = smooth_images(64, seed=9), {}
    with torch.no_grad():
        expected = with_outliers()(images)
    for method in ("repapq", "mae", "mse", "entropy"):
        model = long[0] if method == "repapq" else learn(thorough(), method)[0]
        with torch.no_grad():
            noise[method] = float((model(images)[0] - expected).square().mean())
    assert noise["repapq"] < 0.8 * min(value for key, value in noise.items() if key != "repapq")


@pytest.mark.parametrize("method", ["brecq", "qdrop"])
def test_the_methods_it_is_compared_with_run_and_learn_something_else(
    method: str, short: dict[str, torch.Tensor]
) -> None:
    model, result = learn(thorough(reconstruction=SHORT), method)
    assert next(iter(snrs(result))) == method
    assert result.blocks[0].name == "0.rbr_reparam"
    assert len(differing(state_of(model), short)) > 3


def test_the_methods_differ_in_loss_stage_and_inputs_alone() -> None:
    chosen = Reconstruction(iterations=7, loss="l1", stage_weight=3.0, rounding="nearest")
    found = {}
    for name in ("repapq", "brecq", "qdrop"):
        found[name] = list_calibrators()[name]().choose(chosen)
    assert found["repapq"] == chosen
    assert found["brecq"] == chosen.model_copy(update={"loss": "l2", "stage_weight": 0.0})
    assert found["qdrop"] == found["brecq"].model_copy(update={"float_inputs": 0.5})


def test_a_seed_gives_the_same_bits_and_another_one_others(short: dict[str, torch.Tensor]) -> None:
    torch.manual_seed(123)  # of no concern
    again = state_of(learn(thorough(reconstruction=SHORT))[0])
    assert differing(again, short) == set()
    other = state_of(learn(thorough(seed=1, reconstruction=SHORT))[0])
    assert any("scale" in name for name in differing(other, short))


@pytest.mark.parametrize("max_memory", [0, 300_000], ids=["disk", "both"])
def test_disk_gives_the_same_bits_as_memory(
    max_memory: int, short: dict[str, torch.Tensor]
) -> None:
    model, _ = learn(thorough(reconstruction=SHORT, max_memory=max_memory))
    assert differing(state_of(model), short) == set()


@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_killed_run_resumes_to_the_same_bits(
    stop_after: int, short: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    settings = thorough(reconstruction=SHORT, checkpoint=tmp_path / "blocks")

    def kill(description: str, done: int, total: int) -> None:
        files = list((tmp_path / "blocks").glob("*.safetensors"))
        if len(files) >= stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create_calibrator("repapq", settings).calibrate(
            quantized(with_outliers(), (6, 6)), batches(IMAGES), kill
        )
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "blocks").iterdir()}
    assert len(kept) == stop_after
    model, result = learn(settings)
    assert differing(state_of(model), short) == set()
    assert len(result.blocks) == len(list((tmp_path / "blocks").iterdir())) == 4
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_finished_blocks_are_read_and_not_learned_again(
    short: dict[str, torch.Tensor],
    finished_blocks: tuple[Path, CalibrationResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, first = finished_blocks
    settings = thorough(reconstruction=SHORT, checkpoint=folder)
    monkeypatch.setattr(reconstruction, "RATES", dict.fromkeys(reconstruction.RATES, 9.0))
    model, again = learn(settings)
    assert differing(state_of(model), short) == set()
    assert again.blocks == first.blocks


@pytest.mark.parametrize("keep", [0, 30, -1])
def test_a_damaged_block_gives_one_line(
    finished_blocks: tuple[Path, CalibrationResult], tmp_path: Path, keep: int
) -> None:
    folder = Path(shutil.copytree(finished_blocks[0], tmp_path / "blocks"))
    settings = thorough(reconstruction=SHORT, checkpoint=folder)
    damaged = sorted(folder.iterdir())[1]
    damaged.write_bytes(damaged.read_bytes()[:keep])
    with pytest.raises(CalibrationFileError) as caught:
        learn(settings)
    assert str(damaged) in str(caught.value)
    assert "delete it" in str(caught.value)
    assert "\n" not in str(caught.value)
    damaged.unlink()
    if keep == 0:
        assert len(learn(settings)[1].blocks) == 4


def test_a_learning_that_fails_leaves_the_best_baseline_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reconstruction, "RATES", dict.fromkeys(reconstruction.RATES, 5.0))
    monkeypatch.setattr(fit_block, "objective", lambda *_: 0.0)  # no block says it got worse
    monkeypatch.setattr(LearnedBlock, "restore", lambda *_: None)
    model, result = learn(thorough(reconstruction=SHORT))
    found = snrs(result)
    assert result.method == max(found, key=lambda name: found[name]) != "repapq"
    alone = baseline(result.method, (6, 6), IMAGES)
    assert differing(state_of(model), state_of(alone)) == set()
    assert [q.grid for q in model.activation_quantizers.values()] == [
        q.grid for q in alone.activation_quantizers.values()
    ]


def test_without_a_step_it_is_the_best_of_what_it_may_start_from() -> None:
    found = snrs(learn(thorough(reconstruction=Reconstruction(iterations=0)))[1])
    assert found.pop("repapq") == max(found.values())
    assert found.keys() == {*(candidate.name for candidate in CANDIDATES), BY_TENSOR, "gptq"}


@pytest.mark.parametrize("half_range", [True, False])
def test_at_8_bits_all_codes_are_used_where_that_is_free(half_range: bool) -> None:
    chosen = SHORT.model_copy(update={"half_range": half_range})
    model, _ = learn(thorough(reconstruction=chosen), bits=(8, 8))
    wide = IntegerGrid.unsigned(8)
    found = [name for name, q in model.activation_quantizers.items() if q.grid == wide]
    assert found == (["relu_2"] if half_range else [])


@pytest.mark.parametrize(
    ("batch_size", "suffix"), [(None, "float"), (8, "quantized")], ids=["dynamic", "fixed"]
)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_of_network_is_learned(
    name: str, batch_size: int | None, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = Reconstruction(iterations=6, batch_size=4, suffix=suffix)
    model = quantized(traced(name, batch_size), (4, 4))
    steps = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: (steps.append(1), step(self)))
    result = create_calibrator("repapq", thorough(reconstruction=chosen)).calibrate(
        model, batches(count=40, size=8)
    )
    assert len(steps) == 6 * len(result.blocks) > 12
    # Block plus stage, relative to the start, may not exceed 2: the block alone neither.
    assert all(0 <= fit.after <= 2 * fit.before for fit in result.blocks)
    assert any(fit.after < fit.before for fit in result.blocks)
    for count in (1, 3) if batch_size is None else (8,):  # its batch is what it was before
        with torch.no_grad():
            assert len(model(smooth_images(count, seed=3))[0]) == count
    sizes = [n.meta["val"] for n in model.graph_module.graph.nodes if "val" in n.meta]
    assert all(s.node.expr.free_symbols for s in sizes if isinstance(s, torch.SymInt))


def test_the_batch_of_a_fixed_graph_replaces_that_of_the_settings() -> None:
    """With 16 as the graph's batch and 8 asked for, it learns as with 16 asked for."""
    found = []
    for batch_size, asked in ((16, 8), (None, 16)):
        model = quantized(traced("reparameterized", batch_size), (6, 6))
        chosen = SHORT.model_copy(update={"batch_size": asked})
        calibrator = create_calibrator("repapq", thorough(reconstruction=chosen))
        found.append([fit.after for fit in calibrator.calibrate(model, batches(IMAGES)).blocks])
    assert found[0] == pytest.approx(found[1], rel=0.05)


@pytest.mark.parametrize("rate", [9.0, 1e30], ids=["wild", "not a number"])
def test_a_block_whose_learning_got_worse_keeps_its_start(
    rate: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconstruction, "RATES", dict.fromkeys(reconstruction.RATES, rate))
    model, result = learn(thorough(reconstruction=SHORT, checkpoint=tmp_path))
    assert [fit.after for fit in result.blocks] == [fit.before for fit in result.blocks]
    found = snrs(result)
    ours = found.pop("repapq")
    best = max(found, key=lambda name: found[name])
    assert ours == found[best]
    expected = state_of(baseline(best, (6, 6), IMAGES))
    assert differing(expected, state_of(model)) == set()
    kept = {name: value for path in tmp_path.iterdir() for name, value in load_file(path).items()}
    learned = {name for name in expected if not name.endswith("zero_point")}
    assert kept.keys() == learned
    assert {name for name in kept if not torch.equal(kept[name], expected[name])} == set()


def test_a_block_that_got_worse_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    commit = LearnedBlock.commit

    def harm(learned: LearnedBlock) -> None:
        """Break what the second block learned."""
        commit(learned)
        if "1.rbr_reparam.weight" in learned.tensor_names:
            learned.model.weight_of("1.rbr_reparam").zero_()

    monkeypatch.setattr(LearnedBlock, "commit", harm)
    model, result = learn(thorough(reconstruction=LONG))
    ratios = [fit.after / fit.before for fit in result.blocks]
    assert ratios[1] == 1
    assert min(ratios[0], ratios[2]) < 1
    assert [fit.steps for fit in result.blocks] == 4 * [LONG.iterations]
    assert result.method == "repapq"
    untouched = baseline("gptq", (6, 6), IMAGES).weight_of("1.rbr_reparam")
    assert torch.equal(model.weight_of("1.rbr_reparam"), untouched)


@pytest.mark.parametrize("method", ["brecq", "qdrop"])
def test_without_a_stage_term_no_block_ends_worse_than_it_began(method: str) -> None:
    _, result = learn(thorough(reconstruction=SHORT), method, bits=(4, 4))
    assert all(fit.after <= fit.before for fit in result.blocks)
    assert sum(fit.after for fit in result.blocks) < sum(fit.before for fit in result.blocks)


@pytest.mark.parametrize("factor", [2.0**-12, 2.0**12], ids=["quiet", "loud"])
def test_how_loud_the_outputs_are_does_not_matter(
    factor: float, long: tuple[QuantizedModel, CalibrationResult]
) -> None:
    """Everything that is learned has a unit of its own."""

    def make() -> fx.GraphModule:
        module = with_outliers()
        for name in ("6.weight", "6.bias"):
            module.get_parameter(name).data *= factor
        return module

    plain, scaled = snrs(long[1]), snrs(learn(thorough(reconstruction=LONG), make=make)[1])
    assert scaled["repapq"] == pytest.approx(plain["repapq"], abs=0.3)
    assert scaled["repapq"] > scaled["mae"] + 1


def test_a_weight_that_two_blocks_share_is_learned_by_the_first(tmp_path: Path) -> None:
    model = quantized(trace(randomize(Twice()), (SIZE, SIZE)), (6, 6))
    settings = thorough(reconstruction=SHORT, checkpoint=tmp_path)
    create_calibrator("repapq", settings).calibrate(model, batches(16))
    first, second = (load_file(path) for path in sorted(tmp_path.iterdir()))
    assert {name.partition(".")[0] for name in first} == {
        *("conv", "weight_quantizers", "activation_quantizers")
    }
    assert list(second) == ["activation_quantizers.relu.scale"]


@pytest.mark.parametrize("affine", ["none", "identity", "statistics"])
def test_affine_maps_may_start_anywhere(affine: str) -> None:
    chosen = LONG.model_copy(update={"affine": affine, "iterations": 20})
    assert snrs(learn(thorough(reconstruction=chosen))[1])["repapq"] > 10


@pytest.mark.parametrize("name", ["plain", "vit"])
def test_progress_rises_to_its_end(name: str) -> None:
    seen: list[tuple[str, int, int]] = []
    chosen = Reconstruction(iterations=3, batch_size=4)
    create_calibrator("repapq", thorough(reconstruction=chosen)).calibrate(
        quantized(traced(name), (6, 6)),
        batches(count=16, size=8),
        lambda description, done, total: seen.append((description, done, total)),
    )
    assert {description for description, _, _ in seen} == {"repapq"}
    shares = [done / total for _, done, total in seen]
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.3 < shares[-1] == 1
    assert len({share for share in shares if share > 0.1}) >= 3 * 3


def test_memory_is_bounded_by_default() -> None:
    assert 0 < Settings().max_memory <= 8 * GIBIBYTE
    assert Settings().checkpoint is None


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_start_at_min_max_with_8_bits_and_clipped_below(bits: int) -> None:
    model, _ = learn(thorough(reconstruction=Reconstruction(iterations=0)), bits=(bits, 8))
    shares = []
    for name, quantizer in model.weight_quantizers.items():
        amax = channel_amax(with_outliers().get_parameter(f"{name}.weight"))
        shares.append(quantizer.scale * quantizer.grid.quant_max / amax)
    clipped = torch.cat(shares)
    if bits == 8:
        torch.testing.assert_close(clipped, torch.ones_like(clipped), rtol=1e-4, atol=0)
    else:
        assert float(clipped.max()) <= 1.0001
        assert 0.3 <= float(clipped.mean()) < 0.97
