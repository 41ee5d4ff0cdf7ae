"""The shape of the source: who imports whom, how long things are, what is packaged."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("models", "calibrators", "engines", "pipeline")
PREFIX = "reptrt"
MAY_IMPORT = {
    "models": {"models"},
    "calibrators": {"models", "calibrators"},
    "engines": {"engines"},
    "pipeline": set(PACKAGES),
}
# How files from others are read and shown, and files written: the same everywhere, without torch.
SHARED = (
    "reptrt.engines.foreign",
    "reptrt.engines.artifacts",
    "reptrt.engines.file_lock",
    "reptrt.engines.partial",
)
SHARED_PREFIXES = tuple(f"{name}." for name in SHARED)
GPU_MODULES = ("tensorrt", "tensorrt_rtx", "polygraphy.backend.trt", "pycuda", "cuda")
WITHOUT_TORCH = (
    "reptrt.engines", "reptrt.pipeline.recipe", "reptrt.pipeline.workspace.folder", "reptrt.pipeline.cli.main",
    "reptrt.pipeline.validation.shards",
)  # fmt: skip
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

FILES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
TEST_FILES = sorted((ROOT / "tests").rglob("*.py"))

each_file = pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(ROOT).as_posix())


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join((PREFIX, *parts)).removesuffix(".__init__")


MODULES = {module_name(file): file for file in FILES}


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of what is imported anywhere below `tree`, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imported_at_load(file: Path) -> Iterator[str]:
    """Our modules that `file` imports when it is loaded: not for types, not inside functions."""
    skipped = (ast.FunctionDef, ast.AsyncFunctionDef)
    body = [
        node
        for node in parse(file).body
        if not isinstance(node, skipped)
        and not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    ]
    for name in imports(ast.Module(body, [])):
        parts = name.split(".")
        prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
        found = next((prefix for prefix in prefixes if prefix in MODULES), None)
        if found is not None:
            yield found


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def length_without_docstring(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None and first.end_lineno is not None:
        lines -= first.end_lineno - first.lineno + 1
    return lines


def test_there_is_something_to_check() -> None:
    assert {name.split(".")[1] for name in MODULES} == set(PACKAGES)
    assert "reptrt.engines.build.builder" in set(
        imported_at_load(ROOT / "pipeline" / "engine" / "build.py")
    )


@each_file
def test_imports_go_in_one_direction(file: Path) -> None:
    ours = {
        name.split(".")[1]
        for name in imports(parse(file))
        if name.startswith(f"{PREFIX}.") and not f"{name}.".startswith(SHARED_PREFIXES)
    }
    assert ours <= MAY_IMPORT[file.relative_to(ROOT).parts[0]]


def test_what_is_shared_imports_nothing_else_of_ours() -> None:
    ours = {
        name
        for module, file in MODULES.items()
        if f"{module}.".startswith(SHARED_PREFIXES)
        for name in imports(parse(file))
        if name.startswith(f"{PREFIX}.")
    }
    assert ours
    assert all(f"{name}.".startswith(SHARED_PREFIXES) for name in ours)


def test_no_module_imports_the_tests_or_the_benchmarks() -> None:
    outside = {"tests", "benchmarks"}
    assert [
        file for file in FILES if outside & {n.split(".")[0] for n in imports(parse(file))}
    ] == []


@each_file
def test_imports_are_absolute(file: Path) -> None:
    relative = [n for n in ast.walk(parse(file)) if isinstance(n, ast.ImportFrom) and n.level]
    assert relative == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    remaining = {name: set(imported_at_load(file)) - {name} for name, file in MODULES.items()}
    while free := [name for name, needs in remaining.items() if not needs & remaining.keys()]:
        for name in free:
            del remaining[name]
    assert remaining == {}


@each_file
def test_tensorrt_is_imported_in_engines_only_and_never_when_a_module_loads(file: Path) -> None:
    top = [n for n in parse(file).body if isinstance(n, (ast.Import, ast.ImportFrom))]
    whole = parse(file) if file.relative_to(ROOT).parts[0] != "engines" else ast.Module(top, [])
    found = [
        name
        for name in imports(whole)
        if any(name == gpu or name.startswith(f"{gpu}.") for gpu in GPU_MODULES)
    ]
    assert found == []


@pytest.mark.parametrize("package", ["models", "calibrators", "pipeline"])
def test_tensorrt_is_named_for_import_in_engines_only(package: str) -> None:
    pattern = re.compile(
        r"(?:import_module|require_module|__import__)\(\s*[\"'](?:tensorrt|pycuda)"
    )
    files = (ROOT / package).rglob("*.py")
    assert [file for file in files if pattern.search(file.read_text())] == []


@pytest.mark.parametrize("package", WITHOUT_TORCH)
def test_it_imports_on_a_machine_without_torch(package: str) -> None:
    modules = [n for n in MODULES if n == package or n.startswith(f"{package}.")]
    program = f"""
import importlib, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "timm"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
for module in {modules!r}:
    importlib.import_module(module)
"""
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert modules


@each_file
def test_a_module_says_what_it_is_in_one_sentence(file: Path) -> None:
    docstring = ast.get_docstring(parse(file))
    assert docstring is not None
    first = docstring.partition("\n\n")[0]
    assert re.search(r"[.:;]$", first)


@pytest.mark.parametrize(
    "file", [*FILES, *TEST_FILES], ids=lambda file: file.relative_to(ROOT).as_posix()
)
def test_files_and_functions_are_short(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES
    long = {f.name: length_without_docstring(f) for f in functions(parse(file))}
    assert {name: lines for name, lines in long.items() if lines > MAX_FUNCTION_LINES} == {}


def test_no_module_is_called_utils() -> None:
    assert [
        file for file in FILES if re.search(r"(utils?|helpers?|misc|common)\.py$", file.name)
    ] == []


def test_every_folder_with_code_is_a_package() -> None:
    assert [file.parent for file in FILES if not (file.parent / "__init__.py").exists()] == []


def test_the_four_folders_are_linked_into_the_package() -> None:
    links = {link.name: link.readlink() for link in (ROOT / PREFIX).iterdir() if link.is_symlink()}
    assert links == {package: Path("..", package) for package in PACKAGES}


def test_every_data_file_of_a_package_is_packaged() -> None:
    section = (
        (ROOT / "pyproject.toml").read_text().partition("package-data]")[2].partition("\n[")[0]
    )
    patterns = [
        f"{package.replace('.', '/')}/{pattern}"
        for package, patterns in re.findall(r'^"?([\w.]+)"? = \[(.*)\]$', section, re.MULTILINE)
        for pattern in re.findall(r'"([^"]+)"', patterns)
    ]
    packaged = {file.resolve() for pattern in patterns for file in ROOT.glob(pattern)}
    data = {
        file
        for package in PACKAGES
        for file in (ROOT / package).rglob("*")
        if file.is_file() and file.suffix != ".py" and "__pycache__" not in file.parts
    }
    assert {f.relative_to(ROOT).as_posix() for f in data - packaged} == set()
    assert ROOT / PREFIX / "py.typed" in packaged


def test_the_console_script_calls_something_that_exists() -> None:
    script = re.search(r'^reptrt = "([\w.]+):(\w+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert script is not None
    assert callable(getattr(importlib.import_module(script[1]), script[2]))
