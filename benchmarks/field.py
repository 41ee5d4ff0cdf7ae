"""Other people's ONNX files on the road to an engine: docs/field.md.

    python benchmarks/field.py field/*.onnx --data images --output field.json -- --image-size 320

runs `reptrt engine` on each file, with every layer quantized and min-max scales, and prints a table:
islands, coverage, the worst part of the outputs, kernels, seconds. What follows `--` goes to each run.
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
    parser.add_argument("--workspace", type=Path, default=Path("build/field"))
    parser.add_argument("--output", type=Path, default=Path("field.json"))
    options = parser.parse_args(own)
    rows: list[dict[str, Any]] = []
    for file in options.files:
        rows.append(_run(file, options, given))
        print(_line(rows[-1]), flush=True)
        options.output.write_text(json.dumps(rows, indent=2) + "\n")


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    place = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:place], arguments[place + 1 :]


def _run(file: Path, options: argparse.Namespace, given: list[str]) -> dict[str, Any]:
    folder = options.workspace / file.stem
    command = [
        sys.executable, "-m", "reptrt", "engine", str(file), "--data", str(options.data),
        "--workspace", str(folder), "--calibrator", "minmax", "--quantize-head",
        "--num-samples", str(options.num_samples), *given,
    ]  # fmt: skip
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    row: dict[str, Any] = {
        "file": file.name,
        "exit": done.returncode,
        "seconds": round(time.monotonic() - start, 1),
        "command": " ".join(command[1:]),
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
        "coverage": fusion["int8_coverage"],
        "kernels": fusion["kernels"],
        "snr_db": {name: output["snr_db"] for name, output in numerics.items()},
    }


def _line(row: dict[str, Any]) -> str:
    """One row of the table in Markdown."""
    if row["exit"]:
        return f"| {row['file']} | exit {row['exit']}: {' '.join(row['message'])} | | | | |"
    worst = ", ".join(f"{name} {value}" for name, value in row["snr_db"].items())
    islands = "; ".join(row["islands"]) or "none"
    return (
        f"| {row['file']} | {islands} | {row['coverage']:.0f} % | {worst} | {row['kernels']} |"
        f" {row['seconds']:.0f} |"
    )


if __name__ == "__main__":
    main()
