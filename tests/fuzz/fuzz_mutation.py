"""How inputs are made of others: bytes, fields of messages, symbols of texts, tables of frequencies."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError, Message

from bitseam.text import symbols as texts
from bitseam.wire import messages_pb2 as pb

Mutation = Callable[[bytes, Random, int], bytes]  # an input, a source of chance, its variant -> another input

_NUMBERS = (0, 1, 2, 3, 4, 7, 8, 15, 16, 63, 64, 127, 128, 255, 256, 4095, 4096, 2**15, 2**16, 2**20, 2**31, 2**32 - 1)
_LONG = (*_NUMBERS, 2**32, 2**63 - 1, 2**63, 2**64 - 1)
_FLOATS = (float("nan"), float("inf"), -float("inf"), -0.0, 3.4e38, 1e-45, 1e308)


def mutate_bytes(raw: bytes, rng: Random, variant: int = 0) -> bytes:
    """A few changes, anywhere."""
    data = bytearray(raw)
    for _ in range(1 + int(rng.expovariate(0.7))):
        size = len(data)
        at, kind = rng.randrange(size + 1), rng.randrange(9)
        if kind == 0 and size:
            data[at % size] ^= 1 << rng.randrange(8)
        elif kind == 1 and size:
            data[at % size] = rng.choice((0, 1, 127, 128, 254, 255, rng.randrange(256)))
        elif kind == 2:
            data[at:at] = rng.randbytes(rng.choice((1, 1, 2, 4, 30)))
        elif kind == 3:
            del data[at : at + rng.choice((1, 1, 2, 4, 30))]
        elif kind == 4:
            del data[at:]
        elif kind == 5 and size:
            part = data[at : at + rng.choice((2, 8, 40))]
            there = rng.randrange(size)
            data[there : there + (len(part) if rng.random() < 0.5 else 0)] = part
        elif kind == 6:
            form = rng.choice(("<H", "<I", "<f", "<Q"))
            value = rng.choice(_FLOATS[:-1]) if form == "<f" else rng.choice(_LONG) % 256 ** struct.calcsize(form)
            number = struct.pack(form, value)
            data[at : at + len(number)] = number
        elif kind == 7:
            data[at : at + 16] = bytes([rng.choice((0, 255))]) * min(16, max(size - at, 0))
        elif kind == 8:
            data += data[: rng.choice((1, 4, 64))]
    return bytes(data[: 2**17])


def mutate_message(raw: bytes, rng: Random, variant: int, kind: type[Any]) -> bytes:
    """Fields of a message, set to what their types allow."""
    message = kind()
    try:
        message.MergeFromString(raw)
    except DecodeError:
        return mutate_bytes(raw, rng)
    for _ in range(1 + int(rng.expovariate(0.9))):
        part = rng.choice(list(_parts(message)))
        field = rng.choice(part.DESCRIPTOR.fields)
        if rng.random() < 0.15:
            part.ClearField(field.name)
        elif field.message_type is not None and field.message_type.GetOptions().map_entry:
            key = rng.choice(("", "a", "term 3", "é" * 9, "x" * 5000))
            getattr(part, field.name)[key] = "y" * rng.choice((0, 9000))
        elif field.is_repeated:
            values = getattr(part, field.name)
            if field.message_type is not None:
                values.add()
            elif len(values) and rng.random() < 0.7:
                values[rng.randrange(len(values))] = _value(field, values[0], rng)
            else:
                values.extend([_value(field, 0, rng)] * rng.choice((1, 1, 2, 300)))
        elif field.message_type is not None:
            getattr(part, field.name).SetInParent()
        else:
            setattr(part, field.name, _value(field, getattr(part, field.name), rng))
    return message.SerializeToString()


def _parts(message: Message) -> list[Any]:
    found: list[Any] = [message]
    for field, value in message.ListFields():
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for part in value if field.is_repeated else [value]:
                found += _parts(part)
    return found


def _value(field: Any, now: Any, rng: Random) -> Any:
    kind = field.cpp_type
    if kind == field.CPPTYPE_UINT32:
        return rng.choice((*_NUMBERS, (int(now) + rng.choice((-1, 1))) % 2**32))
    if kind == field.CPPTYPE_UINT64:
        return rng.choice((*_LONG, (int(now) + rng.choice((-1, 1))) % 2**64))
    if kind == field.CPPTYPE_ENUM:
        return rng.randrange(-2, 9)
    if kind == field.CPPTYPE_BOOL:
        return rng.random() < 0.5
    if kind == field.CPPTYPE_DOUBLE:
        return rng.choice((*_FLOATS, rng.random()))
    if field.type == field.TYPE_BYTES:
        return mutate_bytes(now if isinstance(now, bytes) else b"", rng)
    return rng.choice(("", "a", "\x1b[31m\n", "é" * 3000, "x" * 5000))


def mutate_symbols(raw: bytes, rng: Random, variant: int, vocabularies: Sequence[int]) -> bytes:
    """The symbols of a text, under their compression; its counts mostly follow."""
    vocabulary = vocabularies[variant // 2]
    try:
        message = pb.Text.FromString(raw)
        symbols = texts._decompressed(message, vocabulary).tolist()
    except Exception:  # what an earlier change has made of it
        return mutate_bytes(raw, rng)
    for _ in range(1 + int(rng.expovariate(0.5))):
        at = rng.randrange(len(symbols) + 1)
        how = rng.randrange(4)
        symbol = rng.choice((0, 1, 2, 3, 4, 5, 5 + vocabulary - 1, 5 + vocabulary, 2**16 - 1))
        if how == 0:
            symbols.insert(at, symbol)
        elif how == 1:
            del symbols[at : at + 1]
        elif how == 2 and symbols:
            symbols[at % len(symbols)] = symbol
        else:
            symbols[at:at] = symbols[: rng.choice((1, 5, 200))]
    if rng.random() < 0.8:
        message.sequences = sum(symbol < 2 for symbol in symbols)
        message.tokens = sum(symbol > 3 for symbol in symbols)
    kind = texts._symbol_type(vocabulary)
    packed = (np.array(symbols, np.int64) % 256**kind.itemsize).astype(kind).tobytes()
    message.symbols = texts.deflate(packed)
    return message.SerializeToString()


def move_weight(raw: bytes, rng: Random, variant: int = 0) -> bytes:
    """What one 16-bit number has, another gets: the sum of a table stays."""
    data = bytearray(raw)
    if len(data) < 4:
        return mutate_bytes(raw, rng)
    here, there = rng.randrange(len(data) - 1), rng.randrange(len(data) - 1)
    (one,), (other,) = struct.unpack_from("<H", data, here), struct.unpack_from("<H", data, there)
    moved = rng.choice((1, one - 1 if one else 0, one, rng.randrange(one + 1)))
    struct.pack_into("<H", data, here, (one - moved) % 2**16)
    struct.pack_into("<H", data, there, (other + moved) % 2**16)
    return bytes(data)
