"""The commands that look at one file, or say what there is: nothing is calibrated."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from reptrt.engines.target import resolve_target
from reptrt.pipeline.cli.console import (
    GATE_FAILED,
    json_option,
    output,
    print_json,
    print_rows,
    print_table,
)
from reptrt.pipeline.cli.flags import in_flags
from reptrt.pipeline.cli.options import FILE


@click.command(short_help="Measure latency and throughput of an engine or ONNX file.")
@click.argument("file", type=FILE)
@click.option("--batch", type=click.IntRange(1), default=1, help="images per inference")
@click.option("--seconds", type=float, default=5.0, help="how long to measure")
@click.option("--trusted", is_flag=True, help="let a version-compatible engine run what it carries")
@json_option
def bench(file: Path, batch: int, seconds: float, trusted: bool, as_json: bool) -> None:
    """Measure latency p50/p90/p99 and throughput of an ENGINE (on a GPU) or an ONNX file."""
    from reptrt.pipeline.cli.bench import bench_file, bench_table

    measured = bench_file(file, batch, seconds, trusted)
    if as_json:
        print_json({"file": str(file), **asdict(measured)})
    else:
        output.print(bench_table(file, measured))


@click.command(short_help="Say what TensorRT refuses or runs slowly in an ONNX file.")
@click.argument("file", type=FILE)
@click.option("--fix", "fixed", type=FILE, help="write a file with all repaired that can be")
@click.option("--no-build", is_flag=True, help="do not ask TensorRT-RTX, though it is installed")
@json_option
def lint(file: Path, fixed: Path | None, no_build: bool, as_json: bool) -> None:
    """Say what TensorRT 10 and 11 refuse or run slowly in an ONNX FILE; leave with 1 if they refuse.

    Needs no GPU. TensorRT-RTX is asked too, where it is installed, and its kernels are listed.
    """
    from reptrt.engines.lint import Severity, lint_file
    from reptrt.engines.lint.repair import repair_file, repaired
    from reptrt.engines.lint.rtx import RtxAnswer, ask_rtx
    from reptrt.engines.lint.show import lint_json, lint_lines

    findings, gone = lint_file(file), None
    if fixed is not None:
        repair_file(file, fixed)
        before, file = findings, fixed
        findings = lint_file(file)
        gone = repaired(before, findings)
    answer = RtxAnswer(skipped="not asked") if no_build else ask_rtx(file)
    findings = (*answer.findings(), *findings)
    if as_json:
        print_json(lint_json(file, findings, answer, gone))
    else:
        shown = "\n".join(lint_lines(file, findings, answer, gone))
        print(in_flags(shown, click.get_current_context().find_root().command))
    if any(finding.severity is Severity.ERROR for finding in findings):
        sys.exit(GATE_FAILED)


@click.command()
@json_option
def models(as_json: bool) -> None:
    """List the zoo; any timm model is also available as timm:NAME."""
    from reptrt.models.registry import list_models

    print_rows(("model", "task", "image", "description"), [
        (spec.name, spec.task, "x".join(map(str, spec.preprocess.image_size)), spec.description)
        for spec in list_models()
        if spec.task and spec.preprocess  # as every model of the zoo states
    ], as_json)  # fmt: skip


@click.command()
@json_option
def calibrators(as_json: bool) -> None:
    """List the ways to choose scales."""
    from reptrt.calibrators.names import AUTO
    from reptrt.calibrators.registry import list_calibrators

    known = list_calibrators().items()
    print_rows(("calibrator", "what it does"), [
        (AUTO, "repq-vit or repquant for transformers, repapq for re-parameterized networks and ONNX, else best"),
        *((name, calibrator.summary) for name, calibrator in known),
    ], as_json)  # fmt: skip


@click.command(short_help="List the build targets, or all that is known about one.")
@click.argument("name", required=False)
@json_option
def targets(name: str | None, as_json: bool) -> None:
    """List the build targets, or say all that is known about the one called NAME."""
    from reptrt.pipeline.cli.target_list import HEADER, target_facts, target_json, target_rows

    chosen = None if name is None else resolve_target(name)
    if as_json:
        print_json(target_json(chosen))
    elif chosen is None:
        print_table(HEADER, target_rows())
    else:
        print_table(("", ""), target_facts(chosen))


@click.command(short_help="Say what this machine has, and what works on it.")
@json_option
def doctor(as_json: bool) -> None:
    """Say what this machine has, what works on it, and what to install for the rest."""
    from reptrt.pipeline.cli.doctor import abilities, found_components

    if as_json:
        works = [asdict(ability) for ability in abilities()]
        print_json({"components": dict(found_components()), "abilities": works})
        return
    print_table(("component", "found"), found_components())
    output.print()
    print_table(("", "what works here", "what it takes"), [
        ("no" if ability.remedy else "yes", ability.name, ability.remedy) for ability in abilities()
    ])  # fmt: skip
