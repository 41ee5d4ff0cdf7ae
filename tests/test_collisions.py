"""A user's folders may be called as ours: `models/`, `models.py`, `engines/`, `pipeline/`."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NETWORK = """
from torch import nn


def build():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
"""
# The clone is on the path of the tests' environment; a wheel's user has none.
WITHOUT_CLONE = f"""
import runpy, sys

sys.path[:] = [entry for entry in sys.path if entry != {str(ROOT)!r}]
runpy.run_module("reptrt", run_name="__main__", alter_sys=True)
"""
FIND = """
from reptrt.models.registry import find_model

module = find_model(sys.argv[1]).build(None, (32, 32))
print(type(module).__module__, module[-1].out_features)
"""


def user_folder(folder: Path, file: str) -> str:
    """A network in `file` below `folder`; return it as MODEL."""
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(NETWORK)
    return f"{'.'.join(Path(file).with_suffix('').parts)}:build"


@pytest.mark.parametrize(
    "file",
    ["models/mynet.py", "models.py", "engines/mynet.py", "pipeline/mynet.py"],
)
def test_a_users_module_of_our_name_is_found_beside_an_editable_install(
    tmp_path: Path, file: str
) -> None:
    model = user_folder(tmp_path, file)
    outcome = subprocess.run(
        [sys.executable, "-c", f"import sys{FIND}", model],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.split()[-1] == "5"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a wheel of this project installs, unpacked."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(ROOT)], check=True)
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as packed:
        packed.extractall(folder / "site")
    return folder / "site"


def test_a_wheel_holds_one_package_with_all_its_files(wheel: Path) -> None:
    top = {path.name for path in wheel.iterdir() if not path.name.endswith(".dist-info")}
    assert top == {"reptrt"}
    packed = {path.relative_to(wheel / "reptrt") for path in (wheel / "reptrt").rglob("*.*")}
    for package in ("models", "calibrators", "engines", "pipeline"):
        ours = {path.relative_to(ROOT) for path in (ROOT / package).rglob("*.py")}
        assert ours <= packed
    assert {Path("py.typed"), Path("models/demo/yolov6n_demo.safetensors")} <= packed


def test_python_m_reptrt_runs_a_users_network_from_a_wheel(tmp_path: Path, wheel: Path) -> None:
    model = user_folder(tmp_path, "models/mynet.py")
    arguments = ["calibrate", model, "--data", str(tmp_path / "none.npy")]
    outcome = subprocess.run(
        [sys.executable, "-c", WITHOUT_CLONE, *arguments],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(wheel)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert outcome.returncode == 2
    (line,) = [line for line in outcome.stderr.splitlines() if line.startswith("reptrt: ")]
    assert line.startswith(f"reptrt: {tmp_path / 'none.npy'}: does not exist")


def test_what_was_searched_is_said_where_a_module_is_missing(tmp_path: Path) -> None:
    user_folder(tmp_path, "models/mynet.py")
    outcome = subprocess.run(
        [sys.executable, "-m", "reptrt", "calibrate", "models.mynett:build", "--data", "."],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert outcome.returncode == 2
    assert f"no Python module 'models.mynett' in {tmp_path / 'models'}" in outcome.stderr
    assert "did you mean mynet?" in outcome.stderr
