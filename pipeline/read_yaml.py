"""Read YAML from users: plain data of a bounded size, whatever the file's aliases and tags say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import yaml

from reptrt.engines.foreign.border import explain, read_bytes, reading
from reptrt.engines.foreign.limits import MAX_YAML_BYTES, MAX_YAML_NODES
from reptrt.engines.foreign.text import one_line, visible

_TIMESTAMP = "tag:yaml.org,2002:timestamp"


class _PlainLoader(yaml.SafeLoader):
    """YAML's safe loader, for which a date is text."""


_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag != _TIMESTAMP]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: Path, refuse: Callable[[str], Exception]) -> object:
    """Return what the YAML file holds: dicts, lists, text, numbers.

    Aliases are allowed as long as the document stays small when they are unfolded.

    Raises `refuse(message)`, one line: it cannot be read, is too large, or not valid YAML.
    """
    with reading(path, refuse, "cannot be read"):
        content = read_bytes(path, MAX_YAML_BYTES, refuse)
    try:
        loader = _PlainLoader(content.decode("utf-8"))
        node = loader.get_single_node()
        if node is None:
            return None
        _require_small(node)
        value: object = loader.construct_document(node)
        repr(value).encode("utf-8")  # half characters are no text
    except UnicodeDecodeError:
        raise refuse(f"{visible(str(path))}: not a text file in UTF-8") from None
    except Exception as error:  # constructors of numbers and tags raise what they like
        reason = _reason(error)
        raise refuse(f"{visible(str(path))}: not valid YAML: {reason}") from None
    return value


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):  # `!!bool maybe`
        return f"{one_line(error)} is no value of its tag"
    return one_line(error) if isinstance(error, yaml.YAMLError) else explain(error)


def _require_small(root: yaml.Node) -> None:
    """Count the nodes of a document whose aliases are unfolded, each node once.

    Raises:
        ValueError: they are too many, or it holds itself.
    """
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()
    pending = [root]
    while pending:
        node = pending[-1]
        children = [] if id(node) in sizes else _children(node)
        waiting = [child for child in children if id(child) not in sizes]
        if any(id(child) in open_nodes for child in waiting):
            raise ValueError("a value holds itself")
        if waiting and id(node) not in open_nodes:
            open_nodes.add(id(node))
            pending += waiting
            continue
        pending.pop()
        open_nodes.discard(id(node))
        sizes.setdefault(id(node), 1 + sum(sizes[id(child)] for child in children))
        if sizes[id(node)] > MAX_YAML_NODES:
            raise ValueError(f"its aliases unfold to more than {MAX_YAML_NODES} values")


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []
