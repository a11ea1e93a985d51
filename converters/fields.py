"""Typed metadata of a GGUF: one Field per key, with the exact type the loader asks for, and its bytes.

Knows the value types of the format. Does not know which keys a model needs.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGUFValueType as Type

from liquidcli.errors import IntegrityError, quote

_PACKING = {Type.UINT16: "<H", Type.UINT32: "<I", Type.INT32: "<i", Type.FLOAT32: "<f", Type.BOOL: "<?"}
_CARRIERS = {Type.UINT32: "<u4", Type.INT32: "<i4", Type.FLOAT32: "<f4", Type.BOOL: "?"}


@dataclass(frozen=True)
class Field:
    key: str
    value: Any
    type: Type
    items: Type | None = None  # of an array

    def as_json(self) -> dict:
        value = self.value
        if self.type is Type.ARRAY and len(value) > 16:
            value = f"{len(value)} values"
        elif self.items is Type.STRING:
            value = [one.decode("utf-8", "replace") if isinstance(one, bytes) else one for one in value]
        return {"key": self.key, "type": f"{self.items.name}[]" if self.items else self.type.name, "value": value}


def u16(key: str, value: int) -> Field:
    return Field(key, int(value), Type.UINT16)


def u32(key: str, value: int) -> Field:
    return Field(key, int(value), Type.UINT32)


def i32(key: str, value: int) -> Field:
    return Field(key, int(value), Type.INT32)


def f32(key: str, value: float) -> Field:
    return Field(key, float(value), Type.FLOAT32)


def boolean(key: str, value: bool) -> Field:
    return Field(key, bool(value), Type.BOOL)


def string(key: str, value: str) -> Field:
    return Field(key, value, Type.STRING)


def array(key: str, values: Sequence, items: Type) -> Field:
    return Field(key, list(values), Type.ARRAY, items)


def pack_string(text: str | bytes, where: str) -> bytes:
    try:
        data = text if isinstance(text, bytes) else text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise IntegrityError(f"{where} holds text that is no valid Unicode: {ascii(text)[:60]}") from error
    return struct.pack("<Q", len(data)) + data


def pack_field(field: Field) -> bytes:
    head = pack_string(field.key, "a key") + struct.pack("<I", field.type)
    if field.type is not Type.ARRAY:
        return head + _pack_value(field.value, field.type, field.key)
    head += struct.pack("<IQ", field.items, len(field.value))
    if field.items is Type.STRING:
        return head + b"".join(pack_string(text, field.key) for text in field.value)
    return head + np.asarray(field.value, _CARRIERS[field.items]).tobytes()


def _pack_value(value: Any, kind: Type, where: str) -> bytes:
    if kind is Type.STRING:
        return pack_string(value, where)
    try:
        return struct.pack(_PACKING[kind], value)
    except (struct.error, OverflowError) as error:
        raise IntegrityError(f"{where} cannot hold {quote(value)}") from error
