"""An answer as it comes, and what has crossed for it."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from bitseam.sessions.ledger import Direction, Ledger
from bitseam.text.answer_stream import AnswerStream


@dataclass(frozen=True)
class Crossed:
    """What has crossed in one direction, counted as it was sent.

    bytes: of all messages. fp16_bytes: what the same messages would have been with every coded tensor at fp16. parts:
    bytes of the codes of each stream, such as "image", and of the "rest": texts, ids and what frames a message.
    """

    bytes: int
    fp16_bytes: int
    parts: Mapping[str, int]

    def __str__(self) -> str:
        return f"{self.bytes:,} bytes ({self.fp16_bytes:,} at fp16)"


class Count:
    """What has crossed since this was made, by a session's ledger."""

    def __init__(self, ledger: Ledger, begun: bool = True) -> None:
        """begun: leave out what the ledger holds already."""
        self._ledger = ledger
        self._before = {key: (entry.bytes, entry.fp16_bytes) for key, entry in ledger.entries.items()} if begun else {}

    def __call__(self, way: Direction) -> Crossed:
        """What has crossed `up`, to the server, or `down`."""
        parts: defaultdict[str, int] = defaultdict(int)
        fp16_bytes = 0
        for key, entry in self._ledger.entries.items():
            if key[0] == way:
                size, fp16 = self._before.get(key, (0, 0))
                parts[key[2].partition(" (")[0]] += entry.bytes - size
                fp16_bytes += entry.fp16_bytes - fp16
        return Crossed(sum(parts.values()), fp16_bytes, {name: size for name, size in parts.items() if size})


class Answer:
    """A model's answer. Iterating gives its text in pieces as they come; `str` gives the whole of it.

    What the pieces join to is the text, but for a tokenizer that rewrites what it has already given: the last piece is
    then the whole answer, on a line of its own.
    """

    def __init__(
        self,
        ids: Iterator[Sequence[int]],
        stream: AnswerStream,
        count: Count,
        call: Callable[[], AbstractContextManager[object]],
    ) -> None:
        """ids: the token ids as they come. call: is entered while the next of them are waited for."""
        self._ids, self._stream, self._count, self._call = ids, stream, count, call
        self._pieces: deque[str] = deque()
        self._crossed: tuple[Crossed, Crossed] | None = None

    @property
    def over(self) -> bool:
        """Whether the answer has ended."""
        return self._crossed is not None

    @property
    def text(self) -> str:
        """All of the answer so far."""
        return self._stream.text

    @property
    def sent(self) -> Crossed:
        """What has gone up for it so far: the question, and the image's codes."""
        return self._crossed[0] if self._crossed is not None else self._count("up")

    @property
    def received(self) -> Crossed:
        """What has come down for it so far: tokens."""
        return self._crossed[1] if self._crossed is not None else self._count("down")

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"<Answer {self.text!r}: {self.sent} up, {self.received} down>"

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while not self._pieces:
            if self.over:
                raise StopIteration
            with self._call():
                self._advance()
        return self._pieces.popleft()

    def finish(self) -> None:
        """Wait for the rest of it, which iterating then gives at once."""
        while not self.over:
            with self._call():
                self._advance()

    def _advance(self) -> None:
        ids, ended = None, True
        try:
            ids = next(self._ids, None)
            ended = ids is None
        finally:
            if ended:  # or broken off
                self._crossed = self._count("up"), self._count("down")
        if (piece := self._stream.close() if ids is None else self._stream.feed(ids)) != "":
            self._pieces.append(piece)
