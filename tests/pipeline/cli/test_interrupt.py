"""Ctrl-C and `kill -9` at every stage: the same command then goes on, and ends with the same bytes.

A process that has loaded everything forks one child per case, which walks the road and, at a chosen
moment, sends itself the signal: when a stage starts, or when an artifact is about to be renamed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reptrt.pipeline.workspace.folder import ARTIFACTS
from tests.command_line import TinyProject, complaints_in, reptrt
from tests.run_records import drop_record

pytestmark = pytest.mark.slow

# A shell calls both 130. Now and then CPython ends by the signal itself, whatever `sys.exit` says.
INTERRUPTED = (130, -signal.SIGINT)

LAUNCHER = """
import json, logging, os, sys, threading

import reptrt.pipeline.stages, reptrt.pipeline.report.terminal  # what takes seconds to import, once for all children
from reptrt.pipeline.cli.main import main


class AtStart(logging.Handler):
    def __init__(self, message, delay, number):
        super().__init__()
        self.message = message
        self.timer = threading.Timer(delay, os.kill, (os.getpid(), number))

    def emit(self, record):
        if record.getMessage() == self.message:
            self.timer.start()


def at_rename(name, number):
    def hook(event, arguments):
        if event == "os.rename" and str(arguments[1]).endswith("/" + name):
            os.kill(os.getpid(), number)

    sys.addaudithook(hook)


def become_reptrt(case):
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(case[name], os.O_CREAT | os.O_WRONLY), stream)
    if "started" in case:
        message = case["started"] + ": started"
        logging.getLogger().addHandler(AtStart(message, case["delay"], case["signal"]))
    else:
        at_rename(case["rename"], case["signal"])
    sys.argv = ["reptrt", *case["arguments"]]
    main()


for line in sys.stdin:
    child = os.fork()
    if child == 0:
        become_reptrt(json.loads(line))
        break
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""

STAGES = ("calibrate", "export", "build", "validate")
WRITTEN = {
    "calibrate": ("calibration.safetensors", "scales.json"),
    "export": ("model.fp32.onnx", "model.qdq.onnx", "model.trt.onnx"),
    "build": ("model.engine", "fusion.json"),
    "validate": ("validation.json",),
    "report": ("report.json", "report.html"),
}
SAME_BYTES = ("scales.json", "model.fp32.onnx", "model.qdq.onnx", "model.trt.onnx")

Child = Callable[..., tuple[int, str]]


def heed_interrupts() -> None:
    """A shell that runs the tests in the background makes them ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory, tiny: TinyProject) -> Iterator[Child]:
    """Walk the road in a process of its own; return its exit code (or -signal) and its stderr."""
    folder = tmp_path_factory.mktemp("launcher")
    (folder / "launcher.py").write_text(LAUNCHER)
    paths = os.pathsep.join([str(Path.cwd()), str(tiny.folder)])
    launcher = subprocess.Popen(
        [sys.executable, str(folder / "launcher.py")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": paths}, preexec_fn=heed_interrupts,
    )  # fmt: skip

    def run(workspace: Path, number: signal.Signals, **moment: object) -> tuple[int, str]:
        streams = {name: str(workspace.parent / name) for name in ("out", "err")}
        case = {
            **streams, **moment, "signal": int(number), "arguments": arguments(tiny, workspace),
        }  # fmt: skip
        assert launcher.stdin is not None
        assert launcher.stdout is not None
        launcher.stdin.write(json.dumps(case) + "\n")
        launcher.stdin.flush()
        return int(launcher.stdout.readline()), Path(streams["err"]).read_text()

    yield run
    launcher.communicate(timeout=60)


def arguments(tiny: TinyProject, workspace: Path) -> list[str]:
    options = ["--eval", str(tiny.photos), "--workspace", str(workspace)]
    return ["engine", *tiny.options, *options]


def forget(files: Path, stage: str) -> None:
    """Remove what `stage` and the ones after it wrote, so that a run begins there."""
    for later in list(WRITTEN)[list(WRITTEN).index(stage) :]:
        drop_record(files, later)
        for name in WRITTEN[later]:
            (files / name).unlink()


def assert_resumed(tiny: TinyProject, workspace: Path, finished: Path) -> None:
    """The same command ends well, with the bytes of a run that nobody stopped and nothing else."""
    outcome = reptrt(*arguments(tiny, workspace))
    assert outcome.code == 0, outcome.err
    files, reference = tiny.files_of(workspace), tiny.files_of(finished)
    for name in SAME_BYTES:
        assert (files / name).read_bytes() == (reference / name).read_bytes(), name
    assert {path.name for path in files.iterdir()} == {path.name for path in reference.iterdir()}
    report = json.loads((files / "report.json").read_text())
    expected = json.loads((reference / "report.json").read_text())
    for key in ("accuracy", "numerics", "layers", "fusion"):
        assert report[key] == expected[key], key


def assert_only_whole_files(files: Path, finished: Path, tiny: TinyProject) -> None:
    """Whatever has an artifact's name is complete."""
    for name in set(ARTIFACTS.values()) - {"run.log", "report.html"}:
        path = files / name
        if path.suffix == ".json" and path.exists():
            json.loads(path.read_text())
        if name in SAME_BYTES and path.exists():
            assert path.read_bytes() == (tiny.files_of(finished) / name).read_bytes(), name


@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_within_a_stage_is_one_line_and_the_next_run_goes_on(
    tiny: TinyProject, finished: Path, workspace: Path, child: Child, stage: str
) -> None:
    forget(tiny.files_of(workspace), stage)
    code, err = child(workspace, signal.SIGINT, started=stage, delay=0.05)
    assert code in INTERRUPTED
    assert complaints_in(err) == ["interrupted: the same command goes on where this one stopped"]
    assert not list(tiny.files_of(workspace).glob(".*"))
    assert_only_whole_files(tiny.files_of(workspace), finished, tiny)
    assert_resumed(tiny, workspace, finished)


@pytest.mark.parametrize("name", [name for names in WRITTEN.values() for name in names])
def test_a_kill_before_an_artifact_gets_its_name_leaves_nothing_half_written(
    tiny: TinyProject, finished: Path, workspace: Path, child: Child, name: str
) -> None:
    stage = next(stage for stage, names in WRITTEN.items() if name in names)
    files = tiny.files_of(workspace)
    forget(files, stage)
    code, _ = child(workspace, signal.SIGKILL, rename=name)
    assert code == -signal.SIGKILL
    assert not (files / name).exists()
    assert list(files.glob(f".{name}.*.partial"))
    assert_only_whole_files(files, finished, tiny)
    assert_resumed(tiny, workspace, finished)


def test_ctrl_c_while_the_report_is_written(
    tiny: TinyProject, finished: Path, workspace: Path, child: Child
) -> None:
    code, err = child(workspace, signal.SIGINT, rename="report.html")
    assert code in INTERRUPTED
    assert "Traceback" not in err
    assert_resumed(tiny, workspace, finished)


def test_a_kill_between_an_artifact_and_its_record_runs_the_stage_again(
    tiny: TinyProject, finished: Path, workspace: Path, child: Child
) -> None:
    files = tiny.files_of(workspace)
    forget(files, "build")
    code, _ = child(workspace, signal.SIGKILL, rename="run.json")
    assert code == -signal.SIGKILL
    assert (files / "fusion.json").exists()
    assert_resumed(tiny, workspace, finished)
    last = (files / "run.log").read_text().rpartition("command: ")[2]
    assert "build: started" in last
    assert "export: fresh, skipped" in last


def test_ctrl_c_on_a_real_command(tiny: TinyProject, finished: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "build"
    log = tiny.files_of(workspace) / "run.log"
    command = [sys.executable, "-m", "reptrt", *arguments(tiny, workspace)]
    paths = os.pathsep.join([str(Path.cwd()), str(tiny.folder)])
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
        preexec_fn=heed_interrupts,
    )
    deadline = time.monotonic() + 60
    while not (log.exists() and "calibrate: started" in log.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode in INTERRUPTED
    assert err.splitlines()[-1] == "interrupted: the same command goes on where this one stopped"
    assert "Traceback" not in err
    shutil.copytree(tiny.files_of(finished), tiny.files_of(workspace), dirs_exist_ok=True)
    assert_resumed(tiny, workspace, finished)


def test_ctrl_c_that_a_library_turns_into_an_error_is_still_ctrl_c(
    tiny: TinyProject, tmp_path: Path
) -> None:
    (tiny.folder / "swallowing.py").write_text(
        "import os, signal\n"
        "def build():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    except KeyboardInterrupt:\n"
        "        raise ValueError('a library gave up') from None\n"
    )
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        options = ("--data", tiny.data, "--workspace", tmp_path / "build")
        outcome = reptrt("engine", "swallowing:build", *options)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert outcome.code == 130
    assert "a library gave up" not in outcome.err
