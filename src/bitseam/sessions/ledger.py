"""What crossed, counted: bytes by direction, message kind and part, beside what fp16 would have taken.

Bytes are lengths of serialized frames. MB is 10^6 bytes. The fp16 column replaces each coded payload by two bytes a
feature at the language model's full width and keeps everything else: what fp16 would have sent in the same messages.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from bitseam.streams import End
from bitseam.wire import messages_pb2 as pb

Direction = Literal["up", "down"]


@dataclass
class Entry:
    messages: int = 0
    bytes: int = 0
    fp16_bytes: int = 0


@dataclass
class Ledger:
    """Entries keyed by (direction, message kind, part); a part is a coded tensor with its codec, or `rest`.

    streams: by number.
    """

    streams: Sequence[End]
    entries: defaultdict[tuple[Direction, str, str], Entry] = field(default_factory=lambda: defaultdict(Entry))

    def record(self, direction: Direction, message: object, frame: bytes) -> None:
        """Count one frame of `direction` that holds `message`."""
        kind, rest = type(message).__name__, len(frame)
        for coded in getattr(message, "streams", ()):
            if isinstance(coded, pb.Coded):
                rest -= self._add_payload(direction, kind, *self._part(direction, coded), coded)
        if isinstance(message, pb.Average | pb.Averaged):
            numbers = math.prod(message.weights.shape)
            rest -= self._add_payload(direction, kind, "weights", numbers, message.weights)
        self._add(direction, kind, "rest", rest, rest)

    def total(self, direction: Direction | None = None) -> Entry:
        """The sum over a direction, or over both."""
        rows = [entry for (way, _, _), entry in self.entries.items() if direction in (None, way)]
        return Entry(sum(r.messages for r in rows), sum(r.bytes for r in rows), sum(r.fp16_bytes for r in rows))

    def coded_bytes(self, kind: str, part: str) -> int:
        """Payloads of a part ("image", "text") in messages of a kind, whichever the codec."""
        return sum(
            row.bytes for (_, of, name), row in self.entries.items() if of == kind and name.startswith(f"{part} (")
        )

    def rows(self) -> list[dict[str, str | int]]:
        """Plain rows for logs and reports, largest first."""
        return [
            {"direction": way, "kind": kind, "part": part, **vars(entry)}
            for (way, kind, part), entry in sorted(self.entries.items(), key=lambda item: -item[1].bytes)
        ]

    def restore(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Count what `rows` told before, as if it had crossed now."""
        for row in rows:
            entry = self.entries[row["direction"], row["kind"], row["part"]]
            for name in vars(entry):
                setattr(entry, name, getattr(entry, name) + row[name])

    def _part(self, direction: Direction, coded: pb.Coded) -> tuple[str, int]:
        """What a coded tensor is, and of how many numbers; those of a stream nobody agreed to are refused later."""
        if coded.stream >= len(self.streams):
            return f"stream {coded.stream}", math.prod(coded.shape)
        stream = self.streams[coded.stream]
        codec = stream.codec_id if direction == stream.direction else stream.gradient_codec.codec_id
        # A token may have fewer channels on the wire than it has features.
        return f"{stream.name} ({codec})", math.prod(coded.shape[:-1]) * stream.width

    def _add_payload(self, direction: Direction, kind: str, part: str, numbers: int, coded: pb.Coded) -> int:
        """Returns its bytes."""
        size = len(coded.payload)
        if size:
            self._add(direction, kind, part, size, 2 * numbers)
        return size

    def _add(self, direction: Direction, kind: str, part: str, size: int, fp16: int) -> None:
        entry = self.entries[direction, kind, part]
        entry.messages += 1
        entry.bytes += size
        entry.fp16_bytes += fp16
