"""The options of a recipe on the command line, made from the fields of its sections."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import click
from pydantic import ByteSize
from pydantic.fields import FieldInfo

from reptrt.calibrators.settings import Reconstruction
from reptrt.pipeline.recipe import SECTIONS, Section, Triple, flag

Command = TypeVar("Command", bound=Callable[..., None])


class FilePath(click.Path):
    """A path; an empty one, as of a shell variable that is not set, would be the current folder."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Parse, or fail as click does."""
        if value == "":
            self.fail("the path is empty; leave the option out, or say where", param, ctx)
        return super().convert(value, param, ctx)


FILE = FilePath(path_type=Path)


class Numbers(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4 only
    """Numbers between separators: `0.5,0.5,0.5` or `224x160`; one number stands for all."""

    def __init__(self, name: str, separator: str, count: int, number: type) -> None:
        self.name, self._separator, self._count, self._number = name, separator, count, number

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[Any, ...]:
        """Parse, or fail as click does."""
        try:
            numbers = tuple(self._number(part) for part in str(value).split(self._separator))
        except ValueError:
            numbers = ()
        if len(numbers) == 1:
            numbers *= self._count
        if len(numbers) != self._count:
            self.fail(f"{value!r} is not {self.name}", param, ctx)
        return numbers


class Patterns(click.ParamType):  # type: ignore[type-arg]
    """Patterns between commas."""

    name = "pattern,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:
        """Parse."""
        return tuple(part.strip() for part in str(value).split(",") if part.strip())


class KeyValues(click.ParamType):  # type: ignore[type-arg]
    """`key=value` pairs between commas; the recipe knows which are legal."""

    name = "key=value,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> dict[str, str]:
        """Parse, or fail as click does."""
        pairs = [part.partition("=") for part in str(value).split(",")]
        if not all(key and separator for key, separator, _ in pairs):
            self.fail(f"{value!r} is not {self.name}", param, ctx)
        return {key.strip(): text.strip() for key, _, text in pairs}


_PARSERS: dict[object, Any] = {
    str: str,
    bool: bool,
    Path: FILE,
    ByteSize: str,
    Reconstruction: KeyValues(),
    tuple[str, ...]: Patterns(),
    tuple[int, int]: Numbers("SIZE or HEIGHTxWIDTH", "x", 2, int),
    Triple: Numbers("R,G,B", ",", 3, float),
}
_BOUNDS = {"ge": "min", "gt": "min", "le": "max", "lt": "max"}


def recipe_options(command: Command) -> Command:
    """Give a command MODEL, every recipe option, `--recipe` and `--workspace`."""
    for section in reversed(SECTIONS):
        for name, field in reversed(list(_own_fields(section).items())):
            command = recipe_option(name, field)(command)
    command = click.option("--recipe", "recipe_file", type=FILE, help="YAML with any of these")(
        command
    )
    command = click.option(
        "--workspace", type=FILE, default=Path("build"), help="folder for all that is made"
    )(command)
    return click.argument("model")(command)


def recipe_option(name: str, field: FieldInfo) -> Callable[[Command], Command]:
    """Option of one field; it is None unless given, so that YAML and defaults hold."""
    parser = option_type(field)
    text = _help(field)
    return click.option(
        flag(name), name, type=parser, is_flag=parser is bool, default=None, help=text
    )


def option_type(field: FieldInfo) -> Any:
    """What parses the value of `field`: its type and its bounds."""
    kind, facts = _inner(field.annotation, list(field.metadata))
    if get_origin(kind) is Literal:
        return click.Choice([str(choice) for choice in get_args(kind)])
    if kind in (int, float):
        return _number_type(kind, facts)
    return _PARSERS[kind]


def _own_fields(section: type[Section]) -> Mapping[str, FieldInfo]:
    return {name: one for name, one in section.model_fields.items() if name != "model"}


def _inner(annotation: Any, facts: list[Any]) -> tuple[Any, list[Any]]:
    """The type without `| None` and `Annotated`, and everything that is said of it."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *more = get_args(annotation)
            facts = [*facts, *more]
        elif get_origin(annotation) in (Union, UnionType):
            (annotation,) = (part for part in get_args(annotation) if part is not NoneType)
        else:
            return annotation, facts


def _number_type(kind: type, facts: list[Any]) -> Any:
    """An IntRange or FloatRange with the field's bounds."""
    bounds: dict[str, Any] = {}
    for fact in (part for one in facts for part in (one, *getattr(one, "metadata", ()))):
        for attribute, end in _BOUNDS.items():
            value = getattr(fact, attribute, None)
            if value is not None:
                bounds[end] = value
                bounds[f"{end}_open"] = attribute in ("gt", "lt")
    return (click.IntRange if kind is int else click.FloatRange)(**bounds) if bounds else kind


def _help(field: FieldInfo) -> str:
    """The field's description, with its default where that is one plain value."""
    text = str(field.description)
    default = field.default
    if default is None or default == () or isinstance(default, (bool, Reconstruction)):
        return text
    shown = default.human_readable() if isinstance(default, ByteSize) else default
    return f"{text} [default: {shown}]"
