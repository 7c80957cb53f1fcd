"""An answer as it comes: what is shown in the end is what the whole answer decodes to."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bitseam.text.prompts import Prompter

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_LAST_WORDS = re.compile(r"\s*\S+(\s+\S+)?$")


class AnswerStream:
    """Token ids in, text out, as soon as no later token can change it.

    Held back are characters that lack bytes; runs of SentencePiece's byte tokens, since the end of a run can make all
    of it unreadable; and, of tokenizers that clean up spaces, the last two words. Where a tokenizer changes more than
    that, `close` gives the whole answer once more on a line of its own.
    """

    def __init__(self, prompter: Prompter) -> None:
        self._prompter = prompter
        self._hidden = frozenset(prompter.tokenizer.all_special_ids) - {prompter.end}
        self._ids: list[int] = []
        self._shown = ""

    @property
    def text(self) -> str:
        """All of the answer so far."""
        return self._prompter.decode(self._ids)

    def feed(self, ids: Sequence[int]) -> str:
        """The next ids -> what to show now, "" for nothing yet."""
        self._ids += ids
        sure = self._sure()
        if len(sure) <= len(self._shown) or not sure.startswith(self._shown):
            return ""
        new, self._shown = sure[len(self._shown) :], sure
        return new

    def close(self) -> str:
        """What is left to show."""
        whole = self.text
        return whole[len(self._shown) :] if whole.startswith(self._shown) else f"\n{whole}"

    def _sure(self) -> str:
        kept = list(self._ids)
        while kept and self._open(kept[-1]):
            kept.pop()
        text = self._prompter.decode(kept).rstrip("\ufffd").rstrip()
        return _LAST_WORDS.sub("", text) if self._prompter.tokenizer.clean_up_tokenization_spaces else text

    def _open(self, token: int) -> bool:
        """Whether a run of bytes goes on with or through this token; those that are not shown are in no one's way."""
        piece = self._prompter.tokenizer.convert_ids_to_tokens(token)
        return piece is None or token in self._hidden or bool(_BYTE.fullmatch(piece))
