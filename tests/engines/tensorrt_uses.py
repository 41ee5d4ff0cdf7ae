"""What source files use of the TensorRT Python API, found without running them.

Variables that hold TensorRT objects have fixed names here (`OBJECTS`), so that each attribute, each
method and each keyword can be looked up in the bindings. What would escape that is a complaint too:
an attribute of a nameless result, or of a result under another name.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

OBJECTS = {
    "trt": "trt",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "network_input": "ITensor",
    "config": "IBuilderConfig",
    "parser": "OnnxParser",
    "parser_error": "ParserError",
    "profile": "IOptimizationProfile",
    "cache": "ITimingCache",
    "others": "ITimingCache",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
    "data_type": "DataType",
}
MODULE = "trt"
RTX_ONLY = frozenset(
    {"_set_compute_capabilities"}
)  # functions that the builder calls for RTX alone

Api = Mapping[str, Mapping[str, Sequence[Sequence[str]] | None]]


@dataclass(frozen=True)
class Use:
    """One attribute of a TensorRT object; `arguments` is None where it is not called."""

    where: str
    owner: str
    member: str
    arguments: tuple[int, tuple[str, ...]] | None = None


class Source:
    """One file that may use TensorRT."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.tree = ast.parse(text)
        self.parents = {
            child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)
        }

    def uses(self) -> Iterator[Use]:
        """Attributes of TensorRT objects, outside of what is for RTX alone."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute) and not node.attr.startswith("__"):
                owner = self.class_of(node.value)
                if owner is not None and self.function_of(node) not in RTX_ONLY:
                    where = f"{self.name}:{node.lineno}"
                    yield Use(where, owner, node.attr, self.arguments_of(node))

    def complaints(self) -> Iterator[str]:
        """Attributes that cannot be looked up because the object has no name in `OBJECTS`."""
        for node in ast.walk(self.tree):
            if not isinstance(node, ast.Attribute):
                continue
            value = node.value
            nameless = isinstance(value, ast.Call) and self.is_tensorrt_call(value)
            if (nameless and self.class_of(value) is None) or (
                isinstance(value, ast.Name) and self.is_misnamed(value)
            ):
                yield f"{self.name}:{node.lineno}: .{node.attr} of something without a known name"

    def class_of(self, node: ast.AST) -> str | None:
        """TensorRT class of an expression, None where it is none or unknown."""
        if isinstance(node, ast.Name):
            return OBJECTS.get(node.id) if self.holds_tensorrt(node) else None
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                return OBJECTS.get(node.attr.lstrip("_"))
            if self.class_of(node.value) == MODULE and not node.attr.startswith("__"):
                return node.attr
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            is_constructor = self.class_of(node.func.value) == MODULE
            return node.func.attr if is_constructor else None
        return None

    def holds_tensorrt(self, name: ast.Name) -> bool:
        """Whether `name` is an argument here, or made from a TensorRT object."""
        values = list(self.values_of(name))
        parts = [part for value in values for part in ast.walk(value)]
        return not values or any(is_tensorrt(part) for part in parts)

    def is_misnamed(self, name: ast.Name) -> bool:
        """Whether `name` is no name of `OBJECTS`, but holds what a TensorRT call returned."""
        return name.id not in OBJECTS and any(
            isinstance(value, ast.Call) and self.is_tensorrt_call(value)
            for value in self.values_of(name)
        )

    def is_tensorrt_call(self, call: ast.Call) -> bool:
        """Whether this calls a method of an object, or makes an instance of a class."""
        return isinstance(call.func, ast.Attribute) and self.class_of(call.func.value) is not None

    def values_of(self, name: ast.Name) -> Iterator[ast.AST]:
        """What is assigned to `name` in its function, or in the file where it is global."""
        scope: ast.AST = self.tree
        for parent in self.ancestors(name):
            if isinstance(parent, ast.FunctionDef):
                scope = parent
                break
        for node in ast.walk(scope):
            if isinstance(node, ast.Assign) and any(
                isinstance(target, ast.Name)
                and target.id == name.id
                and isinstance(target.ctx, ast.Store)
                for whole in node.targets
                for target in ast.walk(whole)
            ):
                yield node.value

    def arguments_of(self, node: ast.Attribute) -> tuple[int, tuple[str, ...]] | None:
        """Number of positional arguments, and keywords, where `node` is called; stars count none."""
        call = self.parents[node]
        if not isinstance(call, ast.Call) or call.func is not node:
            return None
        if any(isinstance(argument, ast.Starred) for argument in call.args):
            return None
        return len(call.args), tuple(word.arg for word in call.keywords if word.arg)

    def attributes_of(self, name: str) -> set[str]:
        """Attributes of variables called `name`, and of `self._name`."""
        return {
            node.attr
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Attribute)
            and ast.unparse(node.value) in (name, f"self._{name}")
        }

    def function_of(self, node: ast.AST) -> str | None:
        functions = (n for n in self.ancestors(node) if isinstance(n, ast.FunctionDef))
        return next((function.name for function in functions), None)

    def ancestors(self, node: ast.AST) -> Iterator[ast.AST]:
        while node in self.parents:
            node = self.parents[node]
            yield node


def is_tensorrt(part: ast.AST) -> bool:
    """Whether part of an expression is a TensorRT object or the name of its module."""
    if isinstance(part, ast.Name):
        return part.id in OBJECTS
    if isinstance(part, ast.Attribute):
        return part.attr.lstrip("_") in OBJECTS
    return isinstance(part, ast.Constant) and "tensorrt" in str(part.value)


def uses_tensorrt(text: str) -> bool:
    """Whether a file names the module, or takes one of its objects as `Any`."""
    nodes = list(ast.walk(ast.parse(text)))
    arguments = {
        node.arg: ast.unparse(node.annotation)
        for node in nodes
        if isinstance(node, ast.arg) and node.annotation is not None
    }
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    return MODULE in names or any(arguments.get(name) == "Any" for name in OBJECTS)


def missing(uses: Sequence[Use], api: Api) -> list[str]:
    """Say which `uses` an API does not have, or not with these arguments."""
    problems = []
    for use in uses:
        members = api.get(use.owner)
        if members is None:
            problems.append(f"{use.where}: no class {use.owner}")
        elif use.member not in members:
            problems.append(f"{use.where}: {use.owner} has no {use.member}")
        elif use.arguments is not None and not accepts(members[use.member], use.arguments):
            problems.append(f"{use.where}: {use.owner}.{use.member} takes {members[use.member]}")
    return problems


def accepts(
    overloads: Sequence[Sequence[str]] | None, arguments: tuple[int, tuple[str, ...]]
) -> bool:
    """Whether an overload has these keywords, and room for the positional arguments before them."""
    positional, keywords = arguments
    return not overloads or any(
        positional + len(keywords) <= len(names) and set(keywords) <= set(names[positional:])
        for names in overloads
    )
