"""Whole object graphs as bytes, so that a checker can go back to any state of a host as often as it likes.

Knows nothing of what it keeps. It is pickle with two things added: functions with closures (the core keeps its alarms
as such) are kept with what they have closed over, and values that never change (settings, code) are kept once,
outside of the bytes. So bytes are good only within the process that made them.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from types import CellType, CodeType, FunctionType
from typing import Any

_constants: list[Any] = []
_numbers: dict[int, int] = {}


def freeze(value: object, constant: tuple[type, ...] = ()) -> bytes:
    """Make bytes of a graph; objects of the types in `constant` are shared by all that is thawed."""
    stream = io.BytesIO()
    _Freezer(stream, constant).dump(value)
    return stream.getvalue()


def thaw(frozen: bytes) -> Any:
    """Make the graph again, as a copy of its own."""
    return pickle.loads(frozen)


def _number(value: object) -> int:
    number = _numbers.get(id(value))
    if number is None:
        number = _numbers[id(value)] = len(_constants)
        _constants.append(value)
    return number


def _constant(number: int) -> Any:
    return _constants[number]


def _function(code: int, module: int, name: str, closure: tuple[CellType, ...]) -> FunctionType:
    return FunctionType(_constants[code], _constants[module], name, None, closure)


def _finish(function: FunctionType, defaults: tuple[tuple[Any, ...] | None, dict[str, Any] | None]) -> None:
    function.__defaults__, function.__kwdefaults__ = defaults


def _fill(cell: CellType, contents: tuple[Any, ...]) -> None:
    if contents:
        cell.cell_contents = contents[0]


def _cell() -> CellType:
    return CellType()


class _Freezer(pickle.Pickler):
    def __init__(self, stream: io.BytesIO, constant: tuple[type, ...]) -> None:
        super().__init__(stream, protocol=5)
        self._kept = (CodeType, *constant)

    def reducer_override(self, value: Any) -> Any:
        kind = type(value)
        if kind is FunctionType:
            return self._reduce_function(value)
        if kind is CellType:
            try:
                contents: tuple[Any, ...] = (value.cell_contents,)
            except ValueError:
                contents = ()
            return _cell, (), contents, None, None, _fill
        if kind in self._kept:
            return _constant, (_number(value),)
        return NotImplemented

    @staticmethod
    def _reduce_function(value: Callable[..., Any]) -> Any:
        assert isinstance(value, FunctionType)
        if "<" not in value.__qualname__:
            return NotImplemented
        if value.__closure__ is None:
            return _constant, (_number(value),)
        made = (_number(value.__code__), _number(value.__globals__), value.__name__, value.__closure__)
        return _function, made, (value.__defaults__, value.__kwdefaults__), None, None, _finish
