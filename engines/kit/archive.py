"""The build kit: one archive that builds, checks and installs an engine on its device.

An engine runs only on the kind of GPU that built it. What travels is the typed ONNX file, what is expected
of the engine, and `build.pyz`: the modules of this package that do the work, one Python program that needs
NumPy, TensorRT and a CUDA library. The same contents give the same bytes.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from reptrt.engines.artifacts import file_sha256, replace_when_done
from reptrt.engines.kit.manifest import MANIFEST_FILE, Manifest, manifest_text

PROGRAM = "build.pyz"
_ENGINES = Path(__file__).parents[1]
_PREFIX = "reptrt.engines."
_ENTRY = "kit.program"
_START = """\
import sys

if sys.version_info < (3, 10):
    sys.exit("build.pyz needs Python 3.10 or newer")

from reptrt.engines.kit.program import main

main()
"""
_README = """\
# {name} for {target}

Python 3.10 or newer, NumPy, TensorRT, and PyCUDA or cuda-python. On the device:

    tar -xzf {archive}
    python3 {folder}/{program} --install engines
    cat engines/report.txt

`engines/{name}.engine` appears only after the engine has passed: the kit's files are unchanged, and the
engine gives the reference outputs. `python3 {program} --help` lists the options. {program} is a zip
file of Python sources; `python3 -m zipfile -l {program}` lists them.

`references.npz`, and the same of other sizes, hold some of your calibration images, as the network sees
them. `LICENCES.txt` says what may be done with the weights.
"""


def write_kit(archive: Path, manifest: Manifest, files: Mapping[str, bytes | Path]) -> Manifest:
    """Write `archive`, a .tar.gz with one folder; return the manifest with the hashes of its files.

    Args:
        archive: where it goes.
        manifest: `files` of it is replaced.
        files: contents by name, without the manifest, README.md and `build.pyz`, which are added.
    """
    folder = archive.name.removesuffix(".gz").removesuffix(".tar")
    readme = _README.format(
        name=manifest.name,
        target=manifest.target,
        archive=archive.name,
        folder=folder,
        program=PROGRAM,
    )
    contents = {**files, PROGRAM: pack_program(), "README.md": readme.encode()}
    manifest = replace(
        manifest, files={name: _sha256(content) for name, content in sorted(contents.items())}
    )
    contents[MANIFEST_FILE] = manifest_text(manifest).encode()
    with (
        replace_when_done(archive) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name, content in sorted(contents.items()):
            data = content.read_bytes() if isinstance(content, Path) else content
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size, member.mode = len(data), 0o644
            tar.addfile(member, io.BytesIO(data))
    return manifest


def pack_program() -> bytes:
    """Return `build.pyz`: the modules that `reptrt.engines.kit.program` needs, uncompressed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        _add(packed, "__main__.py", _START)
        _add(packed, "reptrt/__init__.py", "")
        for module in sorted(needed_modules(_ENTRY)):
            file = _source(module)
            _add(
                packed, f"reptrt/engines/{file.relative_to(_ENGINES).as_posix()}", file.read_text()
            )
    return buffer.getvalue()


def needed_modules(entry: str) -> set[str]:
    """Return `entry` and what it imports of `reptrt.engines`, however far; "" is the package itself."""
    found, waiting = set[str](), [entry]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += [_parent(module), *_imported(_source(module).read_text(encoding="utf-8"))]
    return found


def _imported(source: str) -> Iterator[str]:
    """Names of the modules of `reptrt.engines` that `source` imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(_PREFIX):
            module = str(node.module).removeprefix(_PREFIX.rstrip(".")).removeprefix(".")
            names = [f"{module}.{alias.name}".removeprefix(".") for alias in node.names]
            yield from (name for name in names if _source(name).exists())
            yield module


def _source(module: str) -> Path:
    """File of a module or a package, by its name inside `reptrt.engines`."""
    path = _ENGINES.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _parent(module: str) -> str:
    return module.rpartition(".")[0]


def _add(packed: zipfile.ZipFile, name: str, text: str) -> None:
    packed.writestr(zipfile.ZipInfo(name), text.encode())  # dated 1980, not today


def _sha256(content: bytes | Path) -> str:
    return (
        file_sha256(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest()
    )
