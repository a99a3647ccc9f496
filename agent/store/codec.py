"""Frozen values as JSON text, and back. Pure, and quick to import: `holdfast status` reads the store with it.

It knows what the nouns are made of: dataclasses, enumerations, tuples, mappings, optional values, plain JSON.
Unknown fields of a newer version are ignored; a missing field takes its default.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from enum import Enum
from functools import cache
from typing import Any, TypeVar, Union

from agent.errors import StoreError

Value = TypeVar("Value")

_PLAIN = (str, bool, int, float)


def to_text(value: object) -> str:
    """A frozen value as JSON text."""
    return json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"))


def from_text(kind: type[Value], text: str) -> Value:
    """The frozen value that `to_text` wrote. Raises StoreError, which names the place but quotes no value."""
    try:
        raw = json.loads(text)
    except ValueError:
        raise StoreError(f"a stored {kind.__name__} cannot be read: not JSON", code="store-row") from None
    try:
        value: Value = _build(kind, raw, kind.__name__)
    except _WrongError as error:
        raise StoreError(f"a stored {kind.__name__} cannot be read: {error}", code="store-row") from None
    return value


class _WrongError(Exception):
    """Where the text does not fit the kind."""


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(getattr(value, name)) for name in _fields(type(value))}
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (tuple, list, frozenset, set)):
        return [_plain(each) for each in value]
    return value


@cache
def _fields(kind: Any) -> Mapping[str, tuple[Any, bool]]:
    """A dataclass's fields: name to (type, whether it must be there)."""
    hints = typing.get_type_hints(kind)
    missing = dataclasses.MISSING
    return {
        each.name: (hints[each.name], each.default is missing and each.default_factory is missing)
        for each in dataclasses.fields(kind)
    }


def _build(kind: Any, raw: Any, place: str) -> Any:
    if kind is Any:
        return raw
    if kind in _PLAIN:
        return _scalar(kind, raw, place)
    if isinstance(kind, type) and issubclass(kind, Enum):
        try:
            return kind(raw)
        except ValueError:
            raise _WrongError(place) from None
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, raw, place)
    return _generic(kind, raw, place)


def _scalar(kind: Any, raw: Any, place: str) -> Any:
    if kind is float and isinstance(raw, int) and not isinstance(raw, bool):
        return float(raw)
    if type(raw) is not kind:
        raise _WrongError(place)
    return raw


def _dataclass(kind: Any, raw: Any, place: str) -> Any:
    if not isinstance(raw, dict):
        raise _WrongError(place)
    values = {}
    for name, (inner, needed) in _fields(kind).items():
        if name in raw:
            values[name] = _build(inner, raw[name], f"{place}.{name}")
        elif needed:
            raise _WrongError(f"{place}.{name}")
    return kind(**values)


def _generic(kind: Any, raw: Any, place: str) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        if raw is None and type(None) in inner:
            return None
        choices = [each for each in inner if each is not type(None)]
        if len(choices) == 1:
            return _build(choices[0], raw, place)
    if origin is tuple and isinstance(raw, list):
        if len(inner) == 2 and inner[1] is Ellipsis:
            return tuple(_build(inner[0], each, f"{place}[{index}]") for index, each in enumerate(raw))
        if len(inner) == len(raw):
            return tuple(
                _build(one, each, f"{place}[{i}]") for i, (one, each) in enumerate(zip(inner, raw, strict=True))
            )
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(raw, dict):
        return {key: _build(inner[1], each, f"{place}.{key}") for key, each in raw.items()}
    raise _WrongError(place)
