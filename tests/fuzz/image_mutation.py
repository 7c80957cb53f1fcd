"""How image files are made of others, so that they pass their formats' first checks: chunks, boxes, segments, tags."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from random import Random
from typing import TypeVar

from fuzz_mutation import mutate_bytes

Kind = TypeVar("Kind", int, bytes)
_SIZES = (0, 1, 2, 3, 7, 8, 9, 255, 256, 257, 4096, 16383, 2**15, 65535, 2**16, 2**20, 2**24, 2**31, 2**32 - 1)


def mutate_header(raw: bytes, rng: Random, variant: int = 0) -> bytes:
    """A number of the first bytes, where formats keep sizes and depths, in either byte order."""
    data = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2))):
        form = rng.choice((">H", "<H", ">I", "<I", ">B"))
        size = struct.calcsize(form)
        at = rng.randrange(max(min(len(data), 160) - size, 1))
        data[at : at + size] = struct.pack(form, rng.choice(_SIZES) % 256**size)
    return bytes(data)


def mutate_png(raw: bytes, rng: Random, variant: int = 0) -> bytes:
    """Chunks changed, moved, doubled or left out, with sums that are right."""
    chunks = list(_png_chunks(raw))
    if not chunks:
        return mutate_bytes(raw, rng)
    at = rng.randrange(len(chunks))
    kind, body = chunks[at]
    how = rng.randrange(7)
    if how == 0:
        del chunks[at]
    elif how == 1:
        chunks.insert(rng.randrange(len(chunks) + 1), (kind, body))
    elif how == 2:
        chunks.insert(max(at, 1), (rng.choice(_PNG_KINDS), rng.randbytes(rng.choice((0, 1, 2, 6, 26, 300)))))
    elif how == 3 and kind == b"IDAT":
        try:
            body = zlib.compress(mutate_bytes(zlib.decompress(body), rng))
        except zlib.error:
            body = mutate_bytes(body, rng)
        chunks[at] = kind, body
    elif how == 4 and chunks[0][0] == b"IHDR" and len(chunks[0][1]) == 13:
        header = list(struct.unpack(">IIBBBBB", chunks[0][1]))
        field = rng.randrange(7)
        header[field] = rng.choice(_SIZES) if field < 2 else rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
        chunks[0] = b"IHDR", struct.pack(">IIBBBBB", *header)
    else:
        chunks[at] = kind, mutate_bytes(body, rng)
    return raw[:8] + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


_PNG_KINDS = b"tRNS eXIf PLTE IDAT iCCP gAMA sBIT acTL fcTL fdAT zTXt iTXt".split()


def _png_chunks(raw: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at + 12 <= len(raw):
        size = int.from_bytes(raw[at : at + 4], "big")
        yield raw[at + 4 : at + 8], raw[at + 8 : at + 8 + size]
        at += 12 + size


def _change_one(parts: list[tuple[Kind, bytes]], rng: Random, kinds: Sequence[Kind]) -> None:
    """Of parts with their kinds, one left out, put in again as one of `kinds` or its own, or changed."""
    pick, how = rng.randrange(len(parts)), rng.randrange(5)
    kind, body = parts[pick]
    if how == 0:
        del parts[pick]
    elif how == 1:
        parts.insert(rng.randrange(len(parts) + 1), (rng.choice((kind, *kinds)), body))
    else:
        parts[pick] = kind, (mutate_header if how == 2 else mutate_bytes)(body, rng)


def mutate_jpeg(raw: bytes, rng: Random, variant: int = 0) -> bytes:
    """One segment changed, doubled or left out, with a length that is mostly right."""
    segments, at = [], 2
    while at + 4 <= len(raw) and raw[at] == 0xFF and raw[at + 1] != 0xDA:
        size = int.from_bytes(raw[at + 2 : at + 4], "big")
        segments.append((raw[at + 1], raw[at + 4 : at + 2 + size]))
        at += 2 + size
    if not segments:
        return mutate_bytes(raw, rng)
    _change_one(segments, rng, (0xC0, 0xC2, 0xC9, 0xDD, 0xE1, 0xEE))
    out = b"".join(
        bytes([0xFF, m]) + struct.pack(">H", (len(b) + 2 + (rng.random() < 0.03)) % 65536) + b for m, b in segments
    )
    return raw[:2] + out + raw[at:]


def mutate_tiff(raw: bytes, rng: Random, variant: int = 0) -> bytes:
    """Tags of the first directory: their numbers, types, counts and values."""
    order = "<" if raw[:2] == b"II" else ">"
    if len(raw) < 8 or (start := struct.unpack(order + "I", raw[4:8])[0]) + 2 > len(raw):
        return mutate_bytes(raw, rng)
    data, count = bytearray(raw), struct.unpack_from(order + "H", raw, start)[0]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = start + 2 + 12 * rng.randrange(max(min(count, 40), 1))
        if at + 12 > len(data):
            break
        field = rng.randrange(4)
        if field == 0:
            struct.pack_into(order + "H", data, at, rng.choice(_TAGS))
        elif field == 1:
            struct.pack_into(order + "H", data, at + 2, rng.choice((0, 1, 2, 3, 4, 5, 7, 11, 12, 16, 99)))
        elif field == 2:
            struct.pack_into(order + "I", data, at + 4, rng.choice(_SIZES))
        else:
            form = rng.choice("HI")
            value = rng.choice((*_SIZES, *range(9), 12, 16, 32, 64, 32773, 34712, 50000)) % 256 ** struct.calcsize(form)
            struct.pack_into(order + form, data, at + 8, value)
    return bytes(data)


_TAGS = (256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 338, 339, 530, 34665)


def mutate_riff(raw: bytes, rng: Random, variant: int = 0) -> bytes:
    """WebP: a chunk changed, doubled or left out, with sizes that are right."""
    chunks, at = [], 12
    while at + 8 <= len(raw):
        size = int.from_bytes(raw[at + 4 : at + 8], "little")
        chunks.append((raw[at : at + 4], raw[at + 8 : at + 8 + size]))
        at += 8 + size + size % 2
    if not chunks:
        return mutate_bytes(raw, rng)
    _change_one(chunks, rng, (b"ANMF", b"ALPH"))
    body = b"WEBP" + b"".join(k + struct.pack("<I", len(b)) + b + bytes(len(b) % 2) for k, b in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def mutate_boxes(raw: bytes, rng: Random, variant: int = 0) -> bytes:
    """AVIF and JPEG 2000: one box, as deep as it lies, with sizes that are right."""
    boxes = _boxes(raw)
    if not boxes:
        return mutate_bytes(raw, rng)
    pick, how = rng.randrange(len(boxes)), rng.randrange(8)
    kind, body = boxes[pick]
    if how == 0:
        del boxes[pick]
    elif how == 1:
        boxes.insert(rng.randrange(len(boxes) + 1), (kind, body))
    elif how == 2:
        boxes[pick] = (
            rng.choice((b"pitm", b"iloc", b"ispe", b"irot", b"imir", b"av1C", b"auxC", b"grid", b"free")),
            body,
        )
    elif kind in _NESTED and rng.random() < 0.8:
        skip = 4 if kind == b"meta" else 0
        boxes[pick] = kind, body[:skip] + mutate_boxes(body[skip:], rng)
    else:
        boxes[pick] = kind, (mutate_header if how < 5 else mutate_bytes)(body, rng)
    return b"".join(struct.pack(">I", len(body) + 8) + kind + body for kind, body in boxes)


_NESTED = (b"meta", b"iprp", b"ipco", b"moov", b"trak", b"mdia", b"minf", b"stbl", b"jp2h")


def _boxes(raw: bytes) -> list[tuple[bytes, bytes]]:
    boxes, at = [], 0
    while at + 8 <= len(raw):
        size = int.from_bytes(raw[at : at + 4], "big")
        if size < 8:  # to the end, or of 64 bits
            return [*boxes, (raw[at + 4 : at + 8], raw[at + 8 :])]
        boxes.append((raw[at + 4 : at + 8], raw[at + 8 : at + size]))
        at += size
    return boxes
