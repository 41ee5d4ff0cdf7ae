"""Pickled modules: their tensors are read, their classes are not; hostile files run nothing."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import struct
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from reptrt.models.load import load_model
from reptrt.models.weights.checkpoint import CheckpointError, read_checkpoint
from reptrt.models.weights.state_dict import WeightsMismatchError, load_weights, match_weights
from reptrt.models.yolov6.config import Yolov6Config
from reptrt.models.yolov6.network import Yolov6, build_yolov6
from tests.official_checkpoints import CONSTRUCTED, save_official

TINY = Yolov6Config(0.1, 0.03, bidirectional=True, csp_pooling=True)
CLASSES = ["cat", "dog", "cow"]


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("official") / "tiny.pt"
    save_official(path, Yolov6(TINY, 3), names=CLASSES)
    return path


def _error(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message.removeprefix(str(path))


def _replace(path: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """Copy the archive at `path` with other contents of some entries, named from behind."""
    changed = path.with_name("changed.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(changed, "w", compression) as new:
        for entry in old.infolist():
            ending = next((key for key in entries if entry.filename.endswith(key)), None)
            new.writestr(entry.filename, old.read(entry) if ending is None else entries[ending])
    return changed


def _archive(tmp_path: Path, content: bytes) -> Path:
    """Write an archive with the pickle `content` and a storage `0` of four floats."""
    path = tmp_path / "hostile.pt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("hostile/data.pkl", content)
        file.writestr("hostile/data/0", struct.pack("<4f", 1, 2, 3, 4))
        file.writestr("hostile/version", b"3\n")
    return path


def _pickle(content: object) -> bytes:
    return pickle.dumps(content, protocol=2)


def _tensor(
    size: str = "K\x04",
    shape: str = "K\x04\x85",
    stride: str = "K\x01\x85",
    offset: str = "K\x00",
    key: str = "0",
) -> bytes:
    """Return the pickle of `{'w': tensor}` with its parts as opcodes."""
    reference = f"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX{chr(len(key))}\0\0\0{key}"
    reference += f"X\x03\x00\x00\x00cpu{size}tQ"
    rebuild = f"ctorch._utils\n_rebuild_tensor_v2\n({reference}{offset}{shape}{stride}"
    rebuild += "\x89ccollections\nOrderedDict\n)RtR"
    return f"\x80\x02}}X\x01\x00\x00\x00w{rebuild}s.".encode("latin1")


@pytest.mark.parametrize("averaged", [True, False], ids=["ema", "model"])
def test_all_tensors_of_the_averaged_module_are_read_and_no_class_is_constructed(
    tmp_path: Path, averaged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    path = tmp_path / "tiny.pt"
    ema = Yolov6(TINY, 3) if averaged else None
    wanted = save_official(path, Yolov6(TINY, 3), ema, names=CLASSES)
    (tmp_path / "yolov6.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    CONSTRUCTED.clear()
    checkpoint = read_checkpoint(path)
    assert CONSTRUCTED == []
    assert not [name for name in sys.modules if name.startswith("yolov6")]
    assert checkpoint.tensors.keys() == wanted.keys()
    for name, tensor in checkpoint.tensors.items():
        assert torch.equal(tensor, wanted[name].to(tensor.dtype))
        assert tensor.dtype in (torch.float32, torch.int64)
    assert checkpoint.classes == tuple(CLASSES)
    assert checkpoint.activations == ("ReLU",)


def test_the_imitated_file_does_construct_classes_when_torch_loads_it(official: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match="yolov6"):
        torch.load(official, weights_only=False)


def test_the_network_gets_every_tensor_but_the_branches_of_training(
    official: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = read_checkpoint(official)
    match = match_weights(Yolov6(TINY, 3), checkpoint.tensors)
    with caplog.at_level(logging.INFO):
        loaded = load_weights(match, "tiny", "w.pt", checkpoint.activations).state_dict()
    assert all(torch.equal(loaded[name], checkpoint.tensors[name]) for name in loaded)
    left = checkpoint.tensors.keys() - loaded.keys()
    assert left == match.dropped.keys()
    assert len(left) == 6 + 6 + 6 + 2
    assert all(name in caplog.text for name in left)


def test_a_model_of_the_zoo_is_loaded_from_an_official_file(tmp_path: Path) -> None:
    path, trained = tmp_path / "best_ckpt.pt", build_yolov6("yolov6n_demo", 3)
    save_official(path, trained, names=CLASSES)
    loaded = load_model("yolov6n_demo", path)
    assert loaded.classes == tuple(CLASSES)
    assert loaded.num_classes == 3
    weight = trained.state_dict()["backbone.stem.rbr_dense.conv.weight"].half().float()
    assert torch.equal(loaded.module.state_dict()["backbone.stem.rbr_dense.conv.weight"], weight)
    with pytest.raises(WeightsMismatchError, match=r"it fits MODEL=yolov6n_demo$"):
        load_model("yolov6s", path)


def test_a_module_alone_and_one_that_is_wrapped_are_read(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    module.register_buffer("scratch", torch.ones(5), persistent=False)
    for content in (module, {"model": nn.DataParallel(module), "optimizer": None}):
        torch.save(content, tmp_path / "w.pt")
        tensors = read_checkpoint(tmp_path / "w.pt").tensors
        stripped = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
        torch.testing.assert_close(stripped, dict(module.state_dict()), rtol=0, atol=0)


def test_tied_weights_and_views_of_one_storage_are_read(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    content = {"base": base, "transposed": base.t(), "row": base[1], "none": torch.empty(0, 3)}
    torch.save(content, tmp_path / "w.pt")
    torch.testing.assert_close(read_checkpoint(tmp_path / "w.pt").tensors, content)


class _Attack:
    def __init__(self, function: object, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.function, self.arguments


@pytest.mark.parametrize(
    "attack",
    [
        _Attack(os.system, "touch hacked"),
        _Attack(eval, "open('hacked', 'w')"),
        _Attack(exec, "open('hacked', 'w')"),
        _Attack(getattr, "x", "upper"),
        _Attack(__import__, "antigravity"),
        _Attack(torch.load, "hacked"),
        _Attack(torch.nn.Linear, 2, 2),
        _Attack(bytes, 1 << 40),
    ],
    ids=["system", "eval", "exec", "getattr", "import", "load", "module", "memory"],
)
def test_a_call_is_refused_by_its_name_wherever_it_stands(
    official: Path, tmp_path: Path, attack: _Attack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for content in (attack, {"model": attack}, {"state_dict": {}, "epoch": [attack]}):
        message = _error(_archive(tmp_path, _pickle(content)))
        assert "refused: loading it would" in message
        assert attack.function.__name__ in message
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x80\x04\x8c\x02os\x8c\x0bpath.exists\x93\x8c\x01x\x85R.", "os.path.exists"),
        (b"\x80\x02cnumpy.ctypeslib\nload_library\n)R.", "numpy.ctypeslib.load_library"),
        (b"\x80\x02cbuiltins\nobject\nX\x01\x00\x00\x00a\x85\x81.", "construct builtins.object"),
        (b"(S'touch hacked'\nios\nsystem\n.", "opcode"),
        (b"\x80\x02\x82\x01.", "opcode EXT1"),
        (b"\x80\x04\x8c\x01x)}\x92.", "opcode NEWOBJ_EX"),
        (b"\x80\x02X\x01\x00\x00\x00xX\x01\x00\x00\x00yb.", "sets the state of a str"),
        (b"\x80\x02]K\x01K\x02s.", "sets items of a list"),
        (b"\x80\x02}(X\x01\x00\x00\x00aK\x01e.", "adds items to a dict"),
        (b"\x80\x02})K\x01s.", "a tuple as a key"),
        (b"\x80\x02}" + b")" + b"\x85" * 200_000 + b"K\x01s.", "a tuple as a key"),
        (b"\x80\x02" + b"]" * 9_000_000 + b".", "more than the"),
        (b"\x80\x02" + b"(" * 100_000 + b".", "damaged"),
        (b"\x80\x02h\x07.", "damaged"),
        (b"\x80\x02r\xff\xff\xff\x7f.", "damaged"),
        (b"\x80\x02}", "truncated"),
        (b"\x80\x02X\xff\xff\xff\x7fa.", "damaged"),
        (b"\x80\x02X\x01\x00\x00\x00aQ.", "no tensor storage"),
        (b"\x80\x02]q\x00(" + b"K\x01" * 20_000 + b"e0.", "opcode POP"),
        (
            b"\x80\x02]q\x00("
            + b"K\x01" * 9_000
            + b"e"
            + b"c__builtin__\nset\nh\x00\x85Rcbuiltins\nset\nh\x00\x85R" * 2_000
            + b".",
            "again and again",
        ),
        (b"\x80\x02K\x07.", "holds a int"),
    ],
)
def test_a_hostile_pickle_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    assert reason in _error(_archive(tmp_path, content))


def test_a_state_that_would_run_code_stays_data(tmp_path: Path) -> None:
    """BUILD calls `__setstate__` of a real object; here there is no object."""
    content = (
        b"\x80\x02ccode\nInteractiveConsole\n)\x81}X\x0c\x00\x00\x00__setstate__cos\nsystem\nsb"
    )
    message = _error(_archive(tmp_path, content + b"X\x04\x00\x00\x00hackb."))
    assert "sets the state of code.InteractiveConsole twice" in message
    assert "holds a code.InteractiveConsole" in _error(_archive(tmp_path, content + b"."))


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"shape": "K\x05\x85"}, "[5] at 0 does not fit its storage of 4"),
        ({"offset": "K\x01"}, "[4] at 1 does not fit"),
        ({"offset": "J\xff\xff\xff\xff"}, "at -1 does not fit"),
        ({"shape": "J\xff\xff\xff\xff\x85"}, "does not fit"),
        ({"stride": "J\xff\xff\xff\xff\x85"}, "does not fit"),
        ({"stride": "K\x00\x85", "shape": "J\xff\xff\xff\x7f\x85"}, "does not fit"),
        ({"shape": "K\x04K\x01\x86"}, "does not fit"),
        ({"shape": "G?\xf0\0\0\0\0\0\0\x85"}, "a float where a number belongs"),
        ({"size": "K\x08", "shape": "K\x08\x85"}, "has 16 bytes"),
        ({"size": "J\xff\xff\xff\x7f", "shape": "J\xff\xff\xff\x7f\x85"}, "larger than the file"),
        ({"key": "1"}, "no 'data/1'"),
        ({"key": "../version"}, "outside the archive's data"),
        ({"key": "/etc/passwd"}, "outside the archive's data"),
    ],
)
def test_a_tensor_outside_its_storage_or_file_is_refused(
    tmp_path: Path, parts: dict[str, str], reason: str
) -> None:
    assert reason in _error(_archive(tmp_path, _tensor(**parts)))


def test_the_tensor_of_these_tests_is_read_where_nothing_is_wrong(tmp_path: Path) -> None:
    tensors = read_checkpoint(_archive(tmp_path, _tensor())).tensors
    assert tensors["w"].tolist() == [1, 2, 3, 4]


def test_tensors_that_share_a_storage_without_end_are_refused(tmp_path: Path) -> None:
    base = torch.arange(1024.0)
    torch.save({str(index): base for index in range(300)}, tmp_path / "w.pt")
    assert "larger than the file" in _error(tmp_path / "w.pt")


def test_a_zip_bomb_is_refused(official: Path) -> None:
    bomb = _replace(official, {"data/0": bytes(100 << 20)}, zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 20 << 20
    assert "compressed" in _error(bomb)


def test_entries_that_lie_on_each_other_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as file:
        file.writestr("w/data.pkl", _pickle({}))
        file.writestr("w/data/0", bytes(1000))
        for index in range(1, 4):
            twin = copy.copy(file.getinfo("w/data/0"))
            twin.filename = f"w/data/{index}"
            file.filelist.append(twin)
    assert "unpacks to more than it is" in _error(tmp_path / "w.pt")


def test_another_zip_file_is_no_checkpoint(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as file:
        file.writestr("../../etc/evil", b"x")
    assert "torch.save did not write" in _error(tmp_path / "w.pt")
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "script.pt")
    message = _error(tmp_path / "script.pt")
    assert "a TorchScript archive; save model.state_dict(), or convert" in message


def test_modules_without_end_are_refused(tmp_path: Path) -> None:
    module = nn.Module()
    module._modules["again"] = module
    torch.save({"model": module}, tmp_path / "w.pt")
    assert "nested without end" in _error(tmp_path / "w.pt")
    for _ in range(40):
        module = nn.ModuleList([module, module]) if _ else nn.Module()
    torch.save({"model": module}, tmp_path / "w.pt")
    assert "nested without end" in _error(tmp_path / "w.pt")


def test_lists_in_lists_in_a_statement_are_not_written_out(tmp_path: Path) -> None:
    laughs: list[object] = []
    for _ in range(60):
        laughs = [laughs, laughs]
    torch.save({"w": torch.ones(1), "image_size": laughs}, tmp_path / "w.pt")
    assert "image_size is" in _error(tmp_path / "w.pt")
    torch.save({"w": torch.ones(1), "classes": [laughs]}, tmp_path / "w.pt")
    assert "classes is" in _error(tmp_path / "w.pt")


def test_weights_of_another_activation_are_refused(tmp_path: Path) -> None:
    """Nothing in the tensors tells SiLU from ReLU; the pickled module does."""
    plain = Yolov6Config(0.1, 0.03, True, csp_expansion=0.5, mode="conv_relu")
    smooth = Yolov6Config(0.1, 0.03, True, csp_expansion=0.5, mode="conv_silu")
    save_official(tmp_path / "w.pt", Yolov6(plain, 3))
    checkpoint = read_checkpoint(tmp_path / "w.pt")
    match = match_weights(Yolov6(smooth, 3), checkpoint.tensors)
    assert match.num_faults == 0
    with pytest.raises(WeightsMismatchError, match="has ReLU where tiny has SiLU"):
        load_weights(match, "tiny", "w.pt", checkpoint.activations)
