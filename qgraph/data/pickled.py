"""A bounded reader of pickles that hold encoded images and booleans. Nothing is unpickled: no code of the file runs.

It walks over the opcodes (`pickletools.genops`) of protocols 0 to 5, written by Python 2 or 3, and knows lists, tuples,
bytes, booleans, text, whole numbers and None.  Of all functions that a pickle may call it knows these:
``_codecs.encode`` to latin1, as which protocols 0 to 2 of Python 3 store bytes, and those that make NumPy arrays of
uint8, as which OpenCV's ``imencode`` gives an encoded image.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from io import BytesIO
from typing import Any

from qgraph.errors import DataError

_MOST_OPS = 1 << 21  # of a file; 12,000 images take at most 300,000
_LONGEST_LINE = 1000  # in bytes, of a number or a name: what Python makes of it takes more than linear time
_MOST_TEXT = 200  # characters of a file in a message
_UNICODE = b"V"  # the opcode whose line may be an image
_ENCODE, _DTYPE, _ARRAY = "_codecs encode", "numpy dtype", "numpy ndarray"
_REBUILT = ("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")
_FROM_BUFFER = ("numpy.core.numeric _frombuffer", "numpy._core.numeric _frombuffer")
_NAMES = (_ENCODE, _DTYPE, _ARRAY, *_REBUILT, *_FROM_BUFFER)


class _Name(str):
    """A function or a class that the file asks for."""


class _Uint8:
    """NumPy's type of bytes."""


class _Bytes:
    """A NumPy array of uint8; its content comes after it."""

    content = b""


def read_pickled(content: bytes, where: str) -> Any:
    """The object of a pickle: lists, tuples, bytes, booleans and the like; `as_bytes` reads its arrays of uint8.

    Memory and time are linear in the length of the content.  Raises DataError for anything else.
    """
    machine, position = _Machine(len(content)), 0
    try:
        for count, (op, argument, at) in enumerate(pickletools.genops(_Lines(content))):
            position = at or 0
            if count > _MOST_OPS:
                raise _Refused(f"has more than {_MOST_OPS} opcodes")
            machine.run(op.name, argument)
        return machine.stack.pop()
    except _Refused as error:
        reason = str(error)
    except Exception as error:  # on hostile bytes pickletools raises many classes
        reason = f"is damaged: {str(error)[:_MOST_TEXT]}"
    raise DataError(f"{where}: the pickle {reason} (byte {position}), want lists, bytes and booleans alone; it is read "
                    "without running any code")


def as_bytes(value: object) -> bytes | None:
    """The bytes of an object of `read_pickled`, None where it is something else."""
    return value.content if isinstance(value, _Bytes) else value if isinstance(value, bytes) else None


class _Refused(ValueError):
    pass


class _Lines(BytesIO):
    """For `genops`: lines are short, but for those of text."""

    _last = b""

    def read(self, size: int | None = -1, /) -> bytes:
        self._last = super().read(size)
        return self._last

    def readline(self, size: int | None = -1, /) -> bytes:
        return super().readline(-1 if self._last == _UNICODE else _LONGEST_LINE)


class _Machine:
    """The stack that pickles are programs for. room: bytes that calls may make, lest a file grows when it is read."""

    def __init__(self, room: int) -> None:
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._room = room

    def run(self, op: str, argument: Any) -> None:
        if op in _PUSHED:
            self.stack.append(_PUSHED[op](argument))
        elif op in _STEPS:
            _STEPS[op](self, argument)
        elif op not in ("PROTO", "FRAME", "STOP"):
            raise _Refused(f"holds {op}")

    def mark(self, _: None) -> None:
        self._marks.append(len(self.stack))

    def marked(self) -> list[Any]:
        """Takes what lies above the last mark."""
        start = self._marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def last(self, count: int) -> tuple[Any, ...]:
        return tuple(self.stack.pop() for _ in range(count))[::-1]

    def put(self, key: int | None) -> None:
        self._memo[len(self._memo) if key is None else key] = self.stack[-1]

    def get(self, key: int) -> None:
        self.stack.append(self._memo[key])

    def extend(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise _Refused(f"appends to a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(items)

    def name(self, text: str) -> None:
        if text not in _NAMES:
            raise _Refused(f"asks for {text[:_MOST_TEXT].replace(' ', '.')}, which is refused")
        self.stack.append(_Name(text))

    def call(self, _: None) -> None:
        function, arguments = self.last(2)
        if not isinstance(function, _Name):
            raise _Refused(f"calls a {type(function).__name__}")
        if function == _ENCODE and arguments[1:] in (("latin1",), ("latin-1",)):
            made: Any = arguments[0].encode("latin-1")
            self._room -= len(made)
            if self._room < 0:
                raise _Refused("makes more bytes than it has")
        elif function == _DTYPE and arguments[0] in ("u1", b"u1"):
            made = _Uint8()
        elif function in _REBUILT and arguments[0] == _ARRAY:
            made = _Bytes()
        elif function in _FROM_BUFFER and isinstance(arguments[0], bytes) and isinstance(arguments[1], _Uint8):
            made = arguments[0]
        else:
            raise _Refused(f"calls {function.replace(' ', '.')} with other than bytes")
        self.stack.append(made)

    def build(self, _: None) -> None:
        """The state of an array: (version, shape, type, order, bytes). That of its type tells nothing new."""
        state = self.stack.pop()
        made = self.stack[-1]
        if isinstance(made, _Bytes) and isinstance(state[2], _Uint8) and isinstance(state[4], bytes):
            made.content = state[4]
        elif not isinstance(made, _Uint8):
            raise _Refused("holds an object with a state")


def _same(argument: Any) -> Any:
    return argument


_PUSHED: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1"), _same),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _same),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), bytes),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), lambda text: text.encode("latin-1")),  # Python 2's
    "NEWTRUE": lambda _: True, "NEWFALSE": lambda _: False, "NONE": lambda _: None,
    "EMPTY_LIST": lambda _: [], "EMPTY_TUPLE": lambda _: (),
}
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark, "GLOBAL": _Machine.name, "REDUCE": _Machine.call, "BUILD": _Machine.build,
    "STACK_GLOBAL": lambda machine, _: machine.name("{} {}".format(*machine.last(2))),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    "LIST": lambda machine, _: machine.stack.append(machine.marked()),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.marked())),
    "TUPLE1": lambda machine, _: machine.stack.append(machine.last(1)),
    "TUPLE2": lambda machine, _: machine.stack.append(machine.last(2)),
    "TUPLE3": lambda machine, _: machine.stack.append(machine.last(3)),
    "APPEND": lambda machine, _: machine.extend(list(machine.last(1))),
    "APPENDS": lambda machine, _: machine.extend(machine.marked()),
}
