"""The options of a recipe on the command line, made from the fields of its sections."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import click
from click.shell_completion import CompletionItem
from pydantic import ByteSize
from pydantic.fields import FieldInfo

from reptrt.calibrators.names import MODULES
from reptrt.calibrators.settings import Reconstruction
from reptrt.engines.target_table import TARGETS
from reptrt.models.names import TIMM_PREFIX, TORCHVISION_PREFIX, ZOO, timm_names, torchvision_names
from reptrt.pipeline.recipe import (
    AUTO,
    RUN_RECIPE,
    SECTIONS,
    Section,
    SizeRange,
    Triple,
    flag,
)

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


class Sizes(click.ParamType):  # type: ignore[type-arg]
    """Three sizes between commas, each as `Numbers` has it."""

    name = "MIN,OPT,MAX"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[Any, ...]:
        """Parse, or fail as click does."""
        parts = str(value).split(",")
        if len(parts) != 3:
            self.fail(
                f"{value!r} is not {self.name}, as 320,640,960 or 32x64,32x320,32x640", param, ctx
            )
        return tuple(_SIZE.convert(part, param, ctx) for part in parts)


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


_SIZE = Numbers("SIZE or HEIGHTxWIDTH", "x", 2, int)
_PARSERS: dict[object, Any] = {
    str: str,
    bool: bool,
    Path: FILE,
    ByteSize: str,
    Reconstruction: KeyValues(),
    tuple[str, ...]: Patterns(),
    tuple[int, int]: _SIZE,
    SizeRange: Sizes(),
    Triple: Numbers("R,G,B", ",", 3, float),
}


def _complete_models(ctx: click.Context, param: click.Parameter, typed: str) -> list[Any]:
    """Names of the zoo, or of a library behind its prefix, then files."""
    names = [name for name in _known_models(typed) if name.startswith(typed)]
    return [*map(CompletionItem, names), CompletionItem(typed, type="file")]


def _known_models(typed: str) -> Iterable[str]:
    for prefix, names in ((TIMM_PREFIX, timm_names), (TORCHVISION_PREFIX, torchvision_names)):
        if typed.startswith(prefix):
            return [f"{prefix}{name}" for name in names()]
    return ZOO


def _complete_calibrators(ctx: click.Context, param: click.Parameter, typed: str) -> list[str]:
    return [name for name in (AUTO, *MODULES) if name.startswith(typed)]


def _complete_targets(ctx: click.Context, param: click.Parameter, typed: str) -> list[str]:
    return [name for name in (AUTO, *TARGETS) if name.startswith(typed)]


_COMPLETED = {"calibrator": _complete_calibrators, "target": _complete_targets}
_BOUNDS = {"ge": "min", "gt": "min", "le": "max", "lt": "max"}


class RecipeOption(click.Option):
    """An option of a recipe, which stands below the `title` of its section in the help."""

    def __init__(self, *args: Any, title: str, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.title = title


class RecipeCommand(click.Command):
    """A command whose help lists its options below the titles of their sections."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options first, then those of the recipe."""
        groups: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in (one for one in self.get_params(ctx) if isinstance(one, click.Option)):
            title = parameter.title if isinstance(parameter, RecipeOption) else "Options"
            record = parameter.get_help_record(ctx)
            if record is not None:
                groups.setdefault(title, []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


def recipe_options(*without: type[Section]) -> Callable[[Command], Command]:
    """Give a command MODEL, the recipe's options, `--recipe` and `--workspace`.

    Args:
        without: sections that the command does not heed.
    """

    def decorate(command: Command) -> Command:
        for section in reversed([one for one in SECTIONS if one not in without]):
            for name, field in reversed(list(_own_fields(section).items())):
                command = recipe_option(name, field, section.title)(command)
        return _common_options(command)

    return decorate


def _common_options(command: Command) -> Command:
    command = click.option("--recipe", "recipe_file", type=FILE, help="YAML with any of these")(
        command
    )
    command = click.option(
        "--workspace",
        type=FILE,
        default=None,
        callback=_workspace,
        help="folder for all that is made; default: build",
    )(command)
    command = verbose_option(quiet_option(command))
    return click.argument("model", is_eager=True, shell_complete=_complete_models)(command)


def _workspace(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path:
    """Of a MODEL that is the folder of a run: where that folder stands."""
    folder = Path(str(ctx.params.get("model", "")))
    if value is None and (folder / RUN_RECIPE).is_file():
        return folder.absolute().parents[2]
    return value or Path("build")


def _note(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    ctx.meta[f"reptrt.{param.name}"] = value


quiet_option = click.option(
    "-q", "--quiet", is_flag=True, expose_value=False, callback=_note, help="show no progress"
)
verbose_option = click.option(
    "-v", "--verbose", is_flag=True, expose_value=False, callback=_note,
    help="show what run.log gets too",
)  # fmt: skip


def recipe_option(name: str, field: FieldInfo, title: str) -> Callable[[Command], Command]:
    """Option of one field; it is None unless given, so that YAML and defaults hold."""
    parser = option_type(field)
    return click.option(
        flag(name), name, cls=RecipeOption, title=title, type=parser, is_flag=parser is bool,
        default=None, help=_help(field), shell_complete=_COMPLETED.get(name),
    )  # fmt: skip


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
