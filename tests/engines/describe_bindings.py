"""Print what a TensorRT bindings wheel offers, as JSON, without TensorRT and without a GPU.

    python describe_bindings.py tensorrt_cu12_bindings-....whl CLASS...

The extension module wants TensorRT's libraries and about ten functions of them. A copy is made in
which these libraries are called libc.so.6 and these functions getpid: it then loads, and everything
can be looked at, though nothing run. One wheel per process: two do not get along.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import tempfile
import types
import zipfile
from pathlib import Path

LIBRARIES = rb"libnv\w+\.so\.\d+"
FUNCTIONS = rb"create\w+_INTERNAL|get\w*PluginRegistry|getNvOnnxParserVersion|initLibNvInferPlugins"


def load(wheel: Path, folder: Path) -> types.ModuleType:
    """Import the extension module of `wheel`, from a copy in `folder`."""
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith("/tensorrt.so"))
        content = archive.read(member)
    copy = folder / "tensorrt.so"
    copy.write_bytes(rename(rename(content, LIBRARIES, b"libc.so.6"), FUNCTIONS, b"getpid"))
    sys.setdlopenflags(os.RTLD_LAZY)
    spec = importlib.util.spec_from_file_location("tensorrt_bindings.tensorrt", copy)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rename(content: bytes, pattern: bytes, name: bytes) -> bytes:
    """Replace whole zero-terminated strings by a shorter one."""
    return re.sub(
        rb"(?<=\0)(?:" + pattern + rb")(?=\0)", lambda old: name.ljust(len(old[0]), b"\0"), content
    )


def describe(module: types.ModuleType, classes: list[str]) -> dict[str, dict[str, object]]:
    """Members of each class: parameter names of every overload, None for what is no method.

    The module itself is the class "trt"; its members are those classes.
    """
    found = {name: getattr(module, name) for name in classes if hasattr(module, name)}
    members = {
        name: {
            member: signatures(getattr(kind, member))
            for member in sorted(dir(kind))
            if not member.startswith("_")
        }
        for name, kind in found.items()
    }
    constructors = {name: signatures(kind.__init__) for name, kind in found.items()}
    return {"trt": constructors, **members}


def signatures(member: object) -> list[list[str]] | None:
    """Parameter names of each overload, self left out, from what pybind11 writes into docstrings."""
    if not callable(member):
        return None
    text = getattr(member, "__doc__", None) or ""
    heads = re.findall(r"^(?:\d+\. )?\w+\((.*)\) -> .*$", text, re.MULTILINE)
    plain = (re.sub(r" = <[^>]*>", "", head) for head in heads)  # a default that is an enum
    return sorted(
        [name for name in re.findall(r"(\w+): ", head) if name != "self"] for head in plain
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        json.dump(describe(load(Path(sys.argv[1]), Path(scratch)), sys.argv[2:]), sys.stdout)
