"""Other people's ONNX files on the road to an engine: docs/field.md.

    python benchmarks/field.py field/*.onnx --data images --output field.json -- --image-size 320

runs `reptrt engine` on each file, with INT8 wherever it can be (`--quantize all`) and min-max scales, and
prints a table: islands, coverage, the SNR of each part of the outputs, kernels, seconds. What follows `--`
goes to each run. A run that was stopped goes on: files whose row is in `--output`, by the same command, are
not run again. A file that takes longer than `--limit` is stopped, and its row says so.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Run every file and print the table."""
    own, given = _split(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="calibration images")
    parser.add_argument("--num-samples", type=int, default=16)
    parser.add_argument("--limit", type=float, default=1200, help="seconds for each file")
    parser.add_argument("--workspace", type=Path, default=Path("build/field"))
    parser.add_argument("--output", type=Path, default=Path("field.json"))
    options = parser.parse_args(own)
    done: list[dict[str, Any]] = []
    if options.output.exists():
        done = json.loads(options.output.read_text())
    for file in sorted(options.files, key=lambda file: file.stat().st_size):
        command = _command(file, options, given)
        row = next((row for row in done if row["command"] == _shown(command)), None)
        if row is None:
            row = _run(file, options, command)
            done = [*(one for one in done if one["file"] != file.name), row]
            options.output.write_text(json.dumps(done, indent=2) + "\n")
        print(_line(row), flush=True)


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    place = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:place], arguments[place + 1 :]


def _command(file: Path, options: argparse.Namespace, given: list[str]) -> list[str]:
    return [
        sys.executable, "-m", "reptrt", "engine", str(file), "--data", str(options.data),
        "--workspace", str(options.workspace / file.stem), "--calibrator", "minmax",
        "--quantize", "all", "--num-samples", str(options.num_samples), *given,
    ]  # fmt: skip


def _shown(command: list[str]) -> str:
    return " ".join(command[1:])


def _run(file: Path, options: argparse.Namespace, command: list[str]) -> dict[str, Any]:
    folder = options.workspace / file.stem
    start = time.monotonic()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=options.limit
        )
    except subprocess.TimeoutExpired:
        return {"file": file.name, "exit": 124, "command": _shown(command),
                "message": [f"not done in {options.limit:.0f} s"]}  # fmt: skip
    row: dict[str, Any] = {
        "file": file.name,
        "exit": done.returncode,
        "seconds": round(time.monotonic() - start, 1),
        "command": _shown(command),
    }
    report = next(iter(sorted(folder.rglob("report.json"))), None)
    if done.returncode or report is None:
        return {**row, "message": (done.stdout + done.stderr).strip().splitlines()[-1:]}
    return {**row, **_facts(json.loads(report.read_text()))}


def _facts(report: dict[str, Any]) -> dict[str, Any]:
    fusion, numerics = report["fusion"], report["numerics"] or {}
    return {
        "islands": [
            f"{island['role']}: {' '.join(island['op_types'])}"
            for island in fusion["operator_islands"]
        ],
        "layers": [fusion["int8_layers"], fusion["quantizable_layers"]],
        "kernels": fusion["kernels"],
        "verdict": report["deploy_reason"],
        "snr_db": {name: output["snr_db"] for name, output in numerics.items()},
    }


def _line(row: dict[str, Any]) -> str:
    """One row of the table in Markdown."""
    if row["exit"]:
        return f"| {row['file']} | exit {row['exit']}: {' '.join(row['message'])} | | | | |"
    parts = ", ".join(f"{name} {value}" for name, value in row["snr_db"].items())
    int8, layers = row["layers"]
    islands = "; ".join(row["islands"]) or "none"
    return (
        f"| {row['file']} | {islands} | {int8} of {layers} | {parts} | {row['kernels']} |"
        f" {row['seconds']:.0f} |"
    )


if __name__ == "__main__":
    main()
