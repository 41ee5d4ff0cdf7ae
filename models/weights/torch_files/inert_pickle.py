"""Read what a pickle describes without doing what it says: no class is constructed, nothing is called.

A pickle is a program for a stack machine (https://docs.python.org/3/library/pickletools.html). This
machine knows the opcodes that checkpoints are written with and refuses the others. A reference to a
class stays its name, an object becomes a record of its name and state, and a tensor a record of where
its numbers are. Python's own unpickler is not used: it allocates and hashes what a hostile file says.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from typing import BinaryIO

from reptrt.models.weights.torch_files.records import (
    CALLS,
    STORAGES,
    CorruptFileError,
    ForeignClass,
    ForeignObject,
    RefusedPickleError,
    Storage,
    integer,
    scalar_key,
    show,
)

_MAX_BYTES = 8 << 20  # one byte makes at most an empty dict: half a gigabyte in all
_PICKLES_OF_OLD_FILES = 5  # magic number, version, facts of the machine, the object, storage keys
_ITEMS_PER_BYTE = 8  # a list that is passed on again takes two bytes, however long it is
# What a training loop leaves beside the weights: kept as records that nothing reads.
_INERT_CALLS = {
    "_codecs.encode",
    "__builtin__.bytearray",
    "__builtin__.complex",
    "builtins.bytearray",
    "builtins.complex",
    "collections.Counter",
    "collections.defaultdict",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "torch.device",
}


def read_inert_pickle(content: bytes) -> object:
    """Return what the pickle in `content` describes.

    Dicts, lists, tuples, sets, numbers and text are themselves; classes, objects and tensors are
    `ForeignClass`, `ForeignObject` and `StoredTensor`.

    Raises:
        RefusedPickleError: The pickle is too large, or calls something; says what, on one line.
        CorruptFileError: The pickle is damaged.
    """
    if len(content) > _MAX_BYTES:
        raise RefusedPickleError(
            f"its pickle has {len(content)} bytes, more than the {_MAX_BYTES} that are read"
        )
    return _read_one(io.BytesIO(content), _ITEMS_PER_BYTE * len(content))


def read_old_pickles(file: BinaryIO) -> tuple[list[Storage], list[object]]:
    """Check the pickles that a torch file of before version 1.6 begins with.

    Returns:
        The storages that its object refers to, and the keys of those that follow; `file` is behind
        the pickles.

    Raises:
        RefusedPickleError, CorruptFileError: As for `read_inert_pickle`.
    """
    start = file.tell()
    head = io.BytesIO(file.read(_MAX_BYTES))
    storages: list[Storage] = []
    for _ in range(_PICKLES_OF_OLD_FILES):
        machine = _Machine(_ITEMS_PER_BYTE * _MAX_BYTES)
        keys = _run(machine, head)
        storages += machine.storages
    file.seek(start + head.tell())
    if not isinstance(keys, list):
        raise CorruptFileError("it does not list its storages")
    return storages, keys


def _read_one(stream: BinaryIO, budget: int) -> object:
    return _run(_Machine(budget), stream)


def _run(machine: _Machine, stream: BinaryIO) -> object:
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.step(opcode.name, argument)
    except (RefusedPickleError, CorruptFileError):
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise CorruptFileError(f"its pickle is damaged: {type(error).__name__}") from error
    raise CorruptFileError("its pickle is truncated")


class _Machine:
    """Stack, marks and memo of one pickle, which may pass `budget` items to calls."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self.stack: list[object] = []
        self._below_marks: list[list[object]] = []
        self._memo: dict[int, object] = {}
        self.storages: list[Storage] = []

    def step(self, opcode: str, argument: object) -> None:
        """Do what one opcode says, as far as that is only data."""
        if opcode in _LITERALS:
            self.stack.append(argument)
        elif opcode in _EMPTY:
            self.stack.append(_EMPTY[opcode]())
        elif opcode in _ACTIONS:
            _ACTIONS[opcode](self, argument)
        else:
            raise RefusedPickleError(
                f"its pickle has the opcode {opcode}, which no checkpoint needs"
            )

    def mark(self, _: object) -> None:
        self._below_marks.append(self.stack)
        self.stack = []

    def _pop_mark(self) -> list[object]:
        items = self.stack
        self.stack = self._below_marks.pop()
        return items

    def put(self, index: object) -> None:
        self._memo[len(self._memo) if index is None else integer(index)] = self.stack[-1]

    def get(self, index: object) -> None:
        self.stack.append(self._memo[integer(index)])

    def tuple_of(self, count: int | None) -> None:
        if count is None:
            items = self._pop_mark()
        else:
            if len(self.stack) < count:
                raise CorruptFileError("its pickle is damaged: empty stack")
            items, self.stack[-count:] = self.stack[-count:], []
        self.stack.append(tuple(items))

    def append(self, items: list[object]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, set):
            target.update(scalar_key(item) for item in items)
        elif not isinstance(target, ForeignObject):
            raise RefusedPickleError(f"its pickle adds items to a {type(target).__name__}")

    def appends(self, _: object) -> None:
        self.append(self._pop_mark())

    def append_one(self, _: object) -> None:
        self.append([self.stack.pop()])

    def set_items(self, items: list[object]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            pairs = zip(items[::2], items[1::2], strict=True)
            target.update((scalar_key(key), value) for key, value in pairs)
        elif not isinstance(target, ForeignObject):
            raise RefusedPickleError(f"its pickle sets items of a {type(target).__name__}")

    def set_many(self, _: object) -> None:
        self.set_items(self._pop_mark())

    def set_one(self, _: object) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def refer(self, argument: object) -> None:
        module, _, name = str(argument).partition(" ")
        self.stack.append(ForeignClass(module, name))

    def refer_from_stack(self, _: object) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise RefusedPickleError("its pickle refers to a class whose name is no text")
        self.stack.append(ForeignClass(module, name))

    def new_object(self, _: object) -> None:
        arguments, cls = self.stack.pop(), self.stack.pop()
        if not isinstance(cls, ForeignClass) or arguments != ():
            raise RefusedPickleError(f"loading it would construct {show(cls)} from arguments")
        self.stack.append(ForeignObject(cls))

    def call(self, _: object) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, ForeignClass) or not isinstance(arguments, tuple):
            raise RefusedPickleError(f"its pickle calls a {type(function).__name__}")
        copied = [a for a in arguments if isinstance(a, list | tuple | dict | set)]
        self._budget -= len(arguments) + sum(map(len, copied))
        if self._budget < 0:
            raise RefusedPickleError("its pickle copies the same lists again and again")
        if function.path in CALLS:
            self.stack.append(CALLS[function.path](*arguments))
        elif function.path in _INERT_CALLS:
            self.stack.append(ForeignObject(function))
        else:
            raise RefusedPickleError(f"loading it would import {show(function)} and could run code")

    def build(self, _: object) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, ForeignObject):
            if target.state:
                raise RefusedPickleError(f"its pickle sets the state of {show(target.cls)} twice")
            if isinstance(state, dict):
                target.state = state
        elif not isinstance(target, dict):  # an ordered dict's attributes say nothing
            raise RefusedPickleError(f"its pickle sets the state of a {type(target).__name__}")

    def refer_to_storage(self, _: object) -> None:
        match self.stack.pop():
            case ("storage", ForeignClass("torch", kind), str(key), str(), int(size), *_) if (
                kind in STORAGES and size >= 0
            ):
                storage = Storage(key, STORAGES[kind], size)
                self.storages.append(storage)
                self.stack.append(storage)
            case ("module", ForeignClass() as cls, *_):  # files of before torch 1.6
                self.stack.append(cls)
            case _:
                raise RefusedPickleError("its pickle refers to something that is no tensor storage")


_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES"),
}
_EMPTY: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_SET": set,
    "EMPTY_TUPLE": tuple,
}
_ACTIONS: dict[str, Callable[[_Machine, object], None]] = {
    "PROTO": lambda machine, version: None,
    "FRAME": lambda machine, size: None,
    "MARK": _Machine.mark,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.put,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "TUPLE": lambda machine, _: machine.tuple_of(None),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "APPEND": _Machine.append_one,
    "APPENDS": _Machine.appends,
    "ADDITEMS": _Machine.appends,
    "SETITEM": _Machine.set_one,
    "SETITEMS": _Machine.set_many,
    "GLOBAL": _Machine.refer,
    "STACK_GLOBAL": _Machine.refer_from_stack,
    "NEWOBJ": _Machine.new_object,
    "REDUCE": _Machine.call,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.refer_to_storage,
}
