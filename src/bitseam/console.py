"""Where all that people read is printed: rich's console, for text that others wrote.

Task names, paths, answers and a peer's words reach the terminal as they are: brackets are no markup, and what would
steer the terminal is spelt out. What we want coloured says so with a style.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler
from rich.segment import Segment
from rich.text import Text

from bitseam.errors import printable


class Terminal(Console):
    """Standard output, or standard error."""

    def __init__(self, stderr: bool = False, **options: Any) -> None:
        # A notebook is no terminal of rich's own kind, which would need widgets for a bar.
        super().__init__(stderr=stderr, markup=False, highlight=False, emoji=False, force_jupyter=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Before it is laid out, so that a table's columns fit what is shown."""
        return super().render_str(_steady(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """All that is shown comes by here, whoever made it; rich's own control codes are segments of their own."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(_steady(segment.text), segment.style)


class _OneLine(logging.Formatter):
    """A record is one line, whatever it quotes; a traceback stands below."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record), None)


def log_handler() -> logging.Handler:
    """Log records on standard error."""
    handler = RichHandler(console=Terminal(stderr=True), show_path=False, highlighter=NullHighlighter(), keywords=[])
    handler.setFormatter(_OneLine("%(message)s"))
    return handler


def plain(text: str) -> Text:
    """Text that others wrote, for a table or title that any console may print."""
    return Text(printable(text, None))


def _steady(text: str) -> str:
    return printable(text, None, lines=True)
