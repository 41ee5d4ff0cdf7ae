"""The images: pinned, without root, small, and of files that exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
IGNORED = (ROOT / ".dockerignore").read_text().split()

each_dockerfile = pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)


def instructions(path: Path) -> list[tuple[str, str]]:
    """Keyword and the rest of each instruction, continued lines joined, comments left out."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    words = [line.partition(" ") for line in joined.splitlines() if line.strip()]
    return [(keyword, " ".join(rest.split())) for keyword, _, rest in words]


def all_of(path: Path, keyword: str) -> list[str]:
    return [rest for word, rest in instructions(path) if word == keyword]


def test_there_is_one_for_servers_for_jetsons_and_for_ci() -> None:
    assert [path.name.partition(".")[0] for path in DOCKERFILES] == ["ci", "jetson", "server"]


@each_dockerfile
def test_an_image_starts_from_one_exact_release(path: Path) -> None:
    (base,) = all_of(path, "FROM")
    tag = base.partition("@")[0].rpartition(":")[2]
    assert "@sha256:" in base or re.search(r"\d+\.\d+\.\d+|\d\d\.\d\d-py3", tag), base
    assert "latest" not in base


@each_dockerfile
def test_an_image_runs_as_a_user_that_it_made_and_not_as_root(path: Path) -> None:
    steps = instructions(path)
    user = all_of(path, "USER")[-1]
    assert user not in ("root", "0")
    made = [i for i, (word, rest) in enumerate(steps) if word == "RUN" and "useradd" in rest]
    assert re.search(rf"useradd\b.* {user}$", steps[made[0]][1])
    assert made[0] < steps.index(("USER", user))


@each_dockerfile
def test_what_an_image_copies_exists_and_is_not_ignored(path: Path) -> None:
    copies = [line.split() for line in all_of(path, "COPY")]
    sources = [word for words in copies for word in words[:-1] if not word.startswith("--")]
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert [source for source in sources if any(fnmatch(source, one) for one in IGNORED)] == []


@each_dockerfile
def test_layers_keep_no_package_lists_and_no_downloads(path: Path) -> None:
    runs, settings = all_of(path, "RUN"), " ".join(all_of(path, "ENV"))
    for run in runs:
        if "apt-get install" in run:
            assert "--no-install-recommends" in run
            assert run.endswith("rm -rf /var/lib/apt/lists/*")
        if re.search(r"pip3? install", run):
            assert "--no-cache-dir" in run or "PIP_NO_CACHE_DIR=1" in settings


def test_what_a_checkout_gathers_stays_out_of_every_image() -> None:
    assert {".git", ".venv", "build", "**/__pycache__"} <= set(IGNORED)
    ignored_by_git = {line.strip("/") for line in (ROOT / ".gitignore").read_text().split()}
    assert {name.removeprefix("**/") for name in ignored_by_git} <= {
        name.removeprefix("**/") for name in IGNORED
    }


def test_the_jetson_image_has_no_pytorch_and_every_package_pinned() -> None:
    (path,) = [path for path in DOCKERFILES if path.name.startswith("jetson")]
    (install,) = [run for run in all_of(path, "RUN") if "pip3 install" in run]
    packages = [word for word in install.partition("pip3 install")[2].split() if word[0] != "-"]
    assert packages
    assert all(re.fullmatch(r"[a-z]+==[\d.]+", package) for package in packages)
    assert not any(package.startswith("torch") for package in packages)


def test_the_server_image_brings_the_code_and_the_tensorrt_of_its_title() -> None:
    (path,) = [path for path in DOCKERFILES if path.name.startswith("server")]
    copied = {word for line in all_of(path, "COPY") for word in line.split()[:-1]}
    assert {"models", "calibrators", "engines", "pipeline"} <= copied
    title = path.read_text().partition("\n")[0]
    (pin,) = re.findall(r"tensorrt==(\d+\.\d+)\.[\d.]+", "\n".join(all_of(path, "RUN")))
    assert f"TensorRT {pin}," in title
    assert "PIP_CONSTRAINT=" in " ".join(all_of(path, "ENV"))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is new in Python 3.11")
@pytest.mark.parametrize("extras", [(), ("tensorrt", "cluster")])
def test_the_server_image_installs_what_the_project_asks_for(extras: tuple[str, ...]) -> None:
    (path,) = [path for path in DOCKERFILES if path.name.startswith("server")]
    (run,) = [run for run in all_of(path, "RUN") if "tomllib" in run]
    script = run.partition(" > requirements.txt")[0].replace("python3", sys.executable)
    (default,) = [line.partition("=")[2].strip('"') for line in all_of(path, "ARG")]
    listed = subprocess.run(
        ["sh", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "EXTRAS": " ".join(extras) or default},
    )  # fmt: skip
    names = [re.split(r"[<>=;\[ ]", line)[0] for line in listed.stdout.splitlines()]
    assert {"torch", "onnx", "tensorrt", "cuda-bindings"} <= set(names)
    assert ("ray" in names) == ("cluster" in extras)
