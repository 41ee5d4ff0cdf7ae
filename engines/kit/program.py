"""The program `build.pyz` of a build kit: build, verify and measure the engine; install or refuse it.

Needs NumPy, TensorRT and a CUDA library; no PyTorch, no ONNX. Exit codes: 0 installed, 1 refused, 2 usage or
bad input, 4 a component is missing, 70 a fault of this program, 130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import re
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from reptrt.engines.artifacts import (
    replace_when_done,
    require_file_or_nothing,
    system_refusal,
    write_json,
    writing,
)
from reptrt.engines.build.builder import BuildResult, build_engine, with_batch
from reptrt.engines.build.timing_cache import default_folder
from reptrt.engines.device import find_gpu
from reptrt.engines.foreign.border import is_out_of_memory, reading
from reptrt.engines.foreign.limits import MAX_BATCH_BYTES
from reptrt.engines.foreign.log_format import VisibleFormatter
from reptrt.engines.foreign.text import one_line, visible
from reptrt.engines.kit.manifest import (
    MANIFEST_FILE,
    Manifest,
    ManifestError,
    check_files,
    read_manifest,
)
from reptrt.engines.kit.report import TriedEngine, report_content, report_text
from reptrt.engines.kit.verification import (
    EngineCheck,
    compare,
    join_checks,
    read_references,
    run_in_batches,
    sample_axes,
    shared_inputs,
    take_batch,
)
from reptrt.engines.option_names import as_flags
from reptrt.engines.runtime.benchmark import Latency, measure_latency
from reptrt.engines.runtime.cuda_stream import open_stream
from reptrt.engines.runtime.runners import OnnxRuntimeRunner, Runner, TensorRTRunner
from reptrt.engines.target import MissingComponentError, Target, load_backend, resolve_target
from reptrt.engines.triton import ServedModel, add_version, require_servable

REFUSED = 1
BAD_INPUT = 2
CRASHED = 70
INTERRUPTED = 130
_MIB = 1 << 20


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program and exit with its code; errors that a user can fix are one line."""
    handler = logging.StreamHandler()
    handler.setFormatter(VisibleFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[handler])
    options = _parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave nothing half-written
    try:
        sys.exit(run(options))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        code = getattr(error, "exit_code", None)
        refusal = system_refusal(error)
        if is_out_of_memory(error):
            refusal = f"there is not enough memory for this: {one_line(error)}"
        if not isinstance(code, int) and refusal is not None:
            print(f"build.pyz: {visible(refusal)}", file=sys.stderr)
            sys.exit(BAD_INPUT)
        if not isinstance(code, int):
            traceback.print_exc()
            print("build.pyz: this is a fault of reptrt: please report it", file=sys.stderr)
            sys.exit(CRASHED)
        flags = {name: f"--{name.replace('_', '-')}" for name in vars(options)}
        print(f"build.pyz: {visible(as_flags(str(error), flags))}", file=sys.stderr)
        sys.exit(code)


def run(options: argparse.Namespace) -> int:
    """Build, verify and measure; install the engine if it passes, and return the exit code."""
    kit, folder = options.kit, options.install
    manifest = read_manifest(kit)
    check_files(kit, manifest)
    target = _target(manifest, options.backend)
    if options.triton is not None:
        require_servable(target)
    trt = load_backend(target)
    notes = check_version(target, trt)
    if options.verify == "engine":
        _require_execution()
    else:
        notes.append("the engine was built, not run: ONNX Runtime ran the ONNX file instead")
    candidate = folder / f"{manifest.name}.engine.candidate"
    built = _build(manifest, target, trt, options, candidate)
    started = time.monotonic()
    check, latency = _try_out(manifest, built, options)
    tried = TriedEngine(built, check, latency, time.monotonic() - started, options.verify)
    passed = not check.failures
    final = folder / f"{manifest.name}.engine"
    with reading(kit / MANIFEST_FILE, ManifestError, "says what no report can hold"):
        content = report_content(manifest, target, tried, kit, notes, final if passed else None)
        text = report_text(content)
    write_json(content, folder / "report.json")
    with replace_when_done(folder / "report.txt") as temporary:
        temporary.write_text(text, encoding="utf-8")
    # Last: nothing is installed before every check has run and the report is written.
    _rename(candidate, final if passed else folder / f"{manifest.name}.engine.refused")
    print(text, end="")
    if passed and options.triton is not None:
        print(f"served by Triton: {add_version(options.triton, _served(manifest, final, options))}")
    return 0 if passed else REFUSED


def _rename(file: Path, final: Path) -> None:
    require_file_or_nothing(final)
    with writing(final):
        file.replace(final)


def check_version(target: Target, trt: ModuleType) -> list[str]:
    """Compare the TensorRT that is here with those that serve `target`; return what is worth noting.

    Raises:
        MissingComponentError: it is older than the first of them.
    """
    if target.tensorrt is None:
        return []
    first, last = target.tensorrt
    here = _version(trt.__version__)
    if here < _version(first):
        raise MissingComponentError(
            f"target '{target.name}' needs {target.backend} {first} or newer, and {trt.__version__}"
            " is here: update it"
        )
    if last is not None and here[:2] > _version(last)[:2]:
        return [
            f"{target.backend} {trt.__version__} is newer than {last}, the last known to serve it"
        ]
    return []


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "build.pyz",
        description="Build the engine of this kit, check it, and install it if it passes.",
    )
    parser.add_argument(
        "--install", type=Path, default=Path("engines"), metavar="DIR",
        help="where the engine and the report go (default: engines)",
    )  # fmt: skip
    parser.add_argument(
        "--kit", type=Path, default=Path(sys.argv[0]).resolve().parent, metavar="DIR",
        help="folder of the unpacked kit (default: that of this file)",
    )  # fmt: skip
    parser.add_argument(
        "--backend", choices=["tensorrt", "tensorrt_rtx"],
        help="module that builds (default: the target's)",
    )  # fmt: skip
    parser.add_argument(
        "--verify", choices=["engine", "onnxruntime"], default="engine",
        help="run the engine, or, where there is no GPU, the ONNX file in ONNX Runtime",
    )  # fmt: skip
    parser.add_argument(
        "--triton", type=Path, metavar="DIR", help="also add it to this model repository of Triton"
    )
    parser.add_argument("--max-batch", type=int, metavar="N", help="largest batch of the engine")
    parser.add_argument(
        "--workspace-limit", type=int, metavar="MIB", help="most GPU memory that a kernel may use"
    )
    parser.add_argument(
        "--optimization-level", type=int, choices=range(6), metavar="0-5",
        help="0 builds fast, 5 gives fast engines (default: TensorRT's, 3)",
    )  # fmt: skip
    parser.add_argument(
        "--timing-cache", type=Path, default=default_folder(), metavar="DIR",
        help="keeps kernel timings between builds (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="how long to measure (default: 5)"
    )
    return parser.parse_args(arguments)


def _served(manifest: Manifest, engine: Path, options: argparse.Namespace) -> ServedModel:
    is_classifier = manifest.task == "classification"
    return ServedModel(
        name=manifest.name,
        file=engine,
        is_engine=True,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        max_batch=_batches(manifest, options.max_batch)[2],
        classes=manifest.classes,
        labelled_output=manifest.outputs[0].name if is_classifier else None,
        verdict=manifest.run.verdict,
        sizes={name: usual[1:] for name, (_, usual, _) in manifest.build.shapes.items()},
    )


def _target(manifest: Manifest, backend: str | None) -> Target:
    """Where the engine will run; another backend than the kit's builds for what that serves."""
    target = resolve_target(manifest.target)
    if backend is None or backend == target.backend:
        return target
    return resolve_target(backend.replace("_", "-"))


def _require_execution() -> None:
    """Say before the build what would be missing after it."""
    if find_gpu() is None:
        raise MissingComponentError(
            "no NVIDIA GPU here, so an engine can be built but not run: run this on the device, or"
            ' give `verify="onnxruntime"` to check the ONNX file instead'
        )
    open_stream().close()


def _batches(manifest: Manifest, largest: int | None) -> tuple[int, int, int]:
    low, usual, high = manifest.build.batch
    if largest is None or low == high:
        return low, usual, high
    return low, min(usual, largest), max(low, largest)


def _build(
    manifest: Manifest,
    target: Target,
    trt: ModuleType,
    options: argparse.Namespace,
    engine: Path,
) -> BuildResult:
    chosen, limit, level = manifest.build, options.workspace_limit, options.optimization_level
    is_classic, batch = target.backend == "tensorrt", _batches(manifest, options.max_batch)
    build_options = replace(
        chosen,
        compute_capabilities=target.compute_capabilities,
        batch=batch,
        shapes=with_batch(chosen.shapes, batch),
        workspace_bytes=chosen.workspace_bytes if limit is None else limit * _MIB,
        optimization_level=chosen.optimization_level if level is None else level,
        timing_cache=options.timing_cache,
        version_compatible=is_classic and chosen.version_compatible,
        hardware_compatible=is_classic and chosen.hardware_compatible,
    )
    result = build_engine(options.kit / manifest.onnx, engine, trt, build_options, _show_progress)
    print(file=sys.stderr)
    return result


def _try_out(
    manifest: Manifest, built: BuildResult, options: argparse.Namespace
) -> tuple[EngineCheck, Latency]:
    """Run the references in every size, in the smallest and the largest batch; time the usual one."""
    sizes = {"": (manifest.references, manifest.tolerances)}
    sizes |= {one.label: (one.references, one.tolerances) for one in manifest.other_sizes}
    runner: Runner
    if options.verify == "engine":
        runner = TensorRTRunner(built.engine_path, built.backend, trusted=True)  # built just now
    else:
        runner = OnnxRuntimeRunner(options.kit / manifest.onnx)
    problem = "its references, its engine and its tolerances do not fit each other"
    checks: dict[str, EngineCheck] = {}
    with runner, reading(options.kit / MANIFEST_FILE, ManifestError, problem):
        for label, (file, tolerances) in sizes.items():
            sized = replace(manifest, tolerances=tolerances)
            checks[label] = _check_size(sized, options, runner, options.kit / file)
        inputs = read_references(options.kit / manifest.references, manifest).inputs
        shared = shared_inputs(manifest.inputs, manifest.build.batch)
        feed = take_batch(inputs, _batches(manifest, options.max_batch)[1], shared=shared)
        return join_checks(checks), measure_latency(runner, feed, min_seconds=options.seconds)


def _check_size(
    manifest: Manifest, options: argparse.Namespace, runner: Runner, file: Path
) -> EngineCheck:
    """Compare with the references of one size."""
    references = read_references(file, manifest)
    low, _, high = _batches(manifest, options.max_batch)
    needed = high * sum(one[0].nbytes for one in references.inputs.values())
    if needed > MAX_BATCH_BYTES:
        raise ManifestError(
            f"{options.kit / MANIFEST_FILE}: a batch of {high} has {needed / 1e9:.1f} GB, more than"
            f" {MAX_BATCH_BYTES / 1e9:.1f} GB: give a smaller `max_batch`"
        )
    shared = shared_inputs(manifest.inputs, manifest.build.batch)
    axes = sample_axes(manifest.outputs)
    outputs = [
        run_in_batches(runner, references.inputs, size, shared, axes)
        for size in sorted({low, high})
    ]
    return compare(references.outputs, outputs, manifest)


def _show_progress(phase: str, done: int, total: int) -> None:
    """One line that is written over, on a terminal; TensorRT calls this from its own threads."""
    if sys.stderr.isatty():
        print(
            f"\r\x1b[K{visible(phase[:60])}: {done} of {total}", end="", file=sys.stderr, flush=True
        )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])
