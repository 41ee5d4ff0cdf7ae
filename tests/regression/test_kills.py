"""100 kills over all commands: nothing half-written, and the same command then ends as if nothing had happened.

A process that has loaded everything forks one child per kill, which runs a command and sends itself SIGKILL,
SIGTERM or SIGINT at one of its file operations, drawn evenly from those of a run that nobody stops.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
import yaml

from tests.command_line import TinyProject
from tests.hostile.graphs import quantized_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("REPTRT_REGRESSION"), reason="minutes of work: `make regress` runs it"
    ),
]

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
INTERRUPTED = 130
LAUNCHER = """
import json, os, signal, sys

import reptrt.engines.lint, reptrt.pipeline.stages, reptrt.pipeline.report.terminal
from reptrt.pipeline.cli.main import main

OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.listdir", "tempfile.mkdtemp",
              "shutil.rmtree", "shutil.copyfile", "subprocess.Popen", "os.chmod")


def count_operations(case):
    done = [0]

    def hook(event, arguments):
        if event not in OPERATIONS or os.getpid() != owner:
            return
        text = " ".join(map(str, arguments))
        if case["folder"] in text or "/tmp" in text or event == "subprocess.Popen":
            done[0] += 1
            if done[0] == case["at"]:
                os.kill(owner, case["signal"])

    owner = os.getpid()
    sys.addaudithook(hook)
    return done


def become_reptrt(case):
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(case["folder"] + "." + name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), stream)
    sys.argv = ["reptrt", *case["arguments"]]
    done = count_operations(case)
    try:
        main()
    finally:
        with open(case["folder"] + ".count", "w") as file:
            file.write(str(done[0]))


for line in sys.stdin:
    child = os.fork()
    if child == 0:
        become_reptrt(json.loads(line))
        break
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Launcher:
    """Runs commands in children of a process that has loaded what they import."""

    def __init__(self, folder: Path, tiny: TinyProject) -> None:
        (folder / "launcher.py").write_text(LAUNCHER)
        paths = os.pathsep.join([str(Path.cwd()), str(tiny.folder)])
        self._process = subprocess.Popen(
            [sys.executable, str(folder / "launcher.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": paths},
        )  # fmt: skip

    def run(
        self, folder: Path, arguments: Sequence[str], at: int = 0, number: int = 0
    ) -> tuple[int, str]:
        """Exit code (or -signal) and stderr of a command that is stopped at its `at`-th operation."""
        case = {
            "folder": str(folder),
            "arguments": list(arguments),
            "at": at,
            "signal": int(number),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(case) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline()), Path(f"{folder}.err").read_text()

    def close(self) -> None:
        self._process.communicate(timeout=60)


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory, tiny: TinyProject) -> Iterator[Launcher]:
    started = Launcher(tmp_path_factory.mktemp("launcher"), tiny)
    yield started
    started.close()


@dataclass(frozen=True)
class Command:
    """What is killed `kills` times; files called `deployed` are whole and the same, or absent."""

    name: str
    kills: int
    target: str = "cpu"
    deployed: tuple[str, ...] = ()

    def arguments(self, tiny: TinyProject, folder: Path) -> list[str]:
        if self.name == "lint":
            return [
                "lint",
                str(folder / "in.onnx"),
                "--no-build",
                "--fix",
                str(folder / "out.onnx"),
            ]
        if self.name == "regress":
            baselines = ["--baselines", str(folder / "baselines.yaml"), "--files", str(tiny.folder)]
            return ["regress", *baselines, "--workspace", str(folder / "build")]
        if self.name == "sweep":
            return ["sweep", str(folder / "sweep.yaml"), "--workspace", str(folder / "build")]
        options = [
            tiny.model, "--image-size", "32", "--data", str(tiny.data), "--eval", str(tiny.photos),
            "--quantize", "all", "--target", self.target, "--workspace", str(folder / "build"),
        ]  # fmt: skip
        if self.name == "compare":
            return ["compare", *options, "--calibrators", "minmax,mae"]
        output = {"kit": "kit.tar.gz", "triton": "repository"}.get(self.name)
        more = ["--output", str(folder / output)] if output else []
        return [self.name, *options, "--calibrator", "minmax", *more]


COMMANDS = (
    Command("engine", 22, deployed=("scales.json", "model.qdq.onnx", "model.fp32.onnx")),
    Command("engine", 12, "tensorrt-rtx", ("scales.json", "model.qdq.onnx", "model.trt.onnx")),
    Command("compare", 12, deployed=("scales.json", "model.qdq.onnx")),
    Command("kit", 16, "tensorrt-rtx", ("kit.tar.gz", "model.trt.onnx")),
    Command("triton", 16, deployed=("config.pbtxt", "model.onnx", "verdict.json")),
    Command("lint", 10, deployed=("out.onnx",)),
    Command("regress", 8),
    Command("sweep", 4, deployed=("scales.json", "model.qdq.onnx")),
)


def prepare(folder: Path, tiny: TinyProject) -> Path:
    folder.mkdir()
    onnx.save(quantized_model(), folder / "in.onnx")
    recipe = {
        "model": tiny.model, "image_size": [32, 32], "data": str(tiny.data), "calibrator": "minmax",
        "quantize": "all", "target": "cpu", "evaluation": str(tiny.photos),
    }  # fmt: skip
    entry = {"recipe": recipe, "int8_coverage": {"value": 100.0, "tolerance": 100.0}}
    (folder / "baselines.yaml").write_text(yaml.safe_dump({"tiny": entry}))
    cell = {"base": recipe, "grid": {"seed": [0, 1]}}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(cell))
    return folder


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def assert_whole(folder: Path, reference: Path, command: Command) -> None:
    """Whatever has the name of an artifact is complete."""
    for path in folder.rglob("*"):
        if path.name.startswith(".") or not path.is_file() or ".partial" in str(path):
            continue
        if path.suffix == ".json":
            json.loads(path.read_text())
        if path.name in command.deployed:
            same = reference / path.relative_to(folder)
            assert path.read_bytes() == same.read_bytes(), path


def drop_second_version(folder: Path) -> None:
    """`triton` that was killed behind its work adds the same again; check that, and take it back."""
    for second in folder.glob("repository/*/2"):
        for path in second.iterdir():
            assert path.read_bytes() == (second.with_name("1") / path.name).read_bytes()
        config = second.with_name("config.pbtxt")
        lines = config.read_text().splitlines(keepends=True)
        config.write_text("".join(line for line in lines if "reptrt.verdict.2" not in line))
        shutil.rmtree(second)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda one: f"{one.name}-{one.target}")
def test_a_killed_command_leaves_nothing_half_written_and_goes_on(
    tiny: TinyProject, launcher: Launcher, tmp_path: Path, command: Command
) -> None:
    reference = prepare(tmp_path / "reference", tiny)
    arguments = command.arguments(tiny, reference)
    usual, err = launcher.run(reference, arguments)
    assert usual in (0, 1), err  # lint finds what it repairs
    operations = int(Path(f"{reference}.count").read_text())
    drawn = random.Random(0)
    for kill in range(command.kills):
        number = SIGNALS[kill % len(SIGNALS)]
        at = 1 + (kill * operations + drawn.randrange(operations)) // command.kills
        folder = prepare(tmp_path / "killed", tiny)
        told = command.arguments(tiny, folder)
        code, err = launcher.run(folder, told, at, number)
        where = f"{command.name}: {number.name} at operation {at} of {operations}"
        if number == signal.SIGKILL:
            assert code == -number, where
        elif code != usual:  # else the last operation was done, or a library went on
            assert code in (INTERRUPTED, -number), f"{where}: {err}"
            assert "Traceback" not in err, f"{where}: {err}"
            left = {name for name in names(folder) if ".partial" in name}
            assert not left, where
        assert_whole(folder, reference, command)
        code, err = launcher.run(folder, told)
        assert code == usual, f"after {where}: {err}"
        drop_second_version(folder)
        assert_whole(folder, reference, command)
        assert names(folder) == names(reference), f"after {where}"
        shutil.rmtree(folder)
