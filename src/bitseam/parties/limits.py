"""What a recipe makes possible is all that a session may send: limits, and the memory that follows from them."""

from __future__ import annotations

import math

from bitseam import config
from bitseam.codecs import EntropyUniform
from bitseam.errors import LimitError
from bitseam.parties.seam import build_seam, channels
from bitseam.parties.text import TextBatch, most_symbol_bytes
from bitseam.transport import HELD_BYTES
from bitseam.wire import Limits

QUESTIONS = 64  # of one message, where the batches of training are smaller
ANSWER = 256  # tokens of one, where the rows of training are shorter

_COPIES = 4  # of the frame that a session works on: as it came, parsed, a payload taken out of it, and as it goes back


def session_limits(recipe: config.Recipe, vocabulary: int) -> Limits:
    """The least limits under which everything passes that the recipe lets an honest side send."""
    seam, wanted = build_seam(recipe.seam), recipe.seam
    batch = max(recipe.train.batch, QUESTIONS)
    tokens = batch * recipe.text.max_tokens
    shapes: dict[str, tuple[int, ...]] = {"image": (batch, wanted.max_tokens, channels(wanted.image_up, wanted.width))}
    if seam.text is not None:
        shapes["text"] = (tokens, channels(wanted.text_up, wanted.width))
    links = {name: getattr(seam, name) for name in shapes}
    codecs = {name: (*link.rates, link.down) for name, link in links.items()}
    tables = [len(link.up.table_bytes()) for link in links.values() if isinstance(link.up, EntropyUniform)]
    payloads = sum(max(codec.payload_bytes(shapes[name]) for codec in codecs[name]) for name in shapes)
    widest = max(shape[-1] for shape in shapes.values())
    usual = Limits()
    ups = (wanted.image_up, wanted.text_up)
    rotation = widest**2 * sum(up.quantizer == "rate-fsq" for up in ups)
    weights = usual.weights if recipe.train.sharing == "averaged" else 0
    most = (
        payloads
        + most_symbol_bytes(batch, tokens, vocabulary)
        + len(shapes) * 8 * widest
        + sum(tables)
        + rotation
        + usual.control_bytes
    )
    return Limits(
        frame_bytes=max(most, 4 * weights + usual.control_bytes if weights else 0),
        elements=max(math.prod(shape) for shape in shapes.values()),
        batch=batch,
        image_tokens=wanted.max_tokens,
        tokens=tokens,
        weights=weights,
        channels=widest,
        tables=max(tables, default=0),
        rotation=rotation,
        new_tokens=new_tokens(recipe.text),
        hello_seconds=recipe.network.hello_seconds,
        idle_seconds=recipe.network.idle_seconds,
    )


def new_tokens(text: config.Text) -> int:
    """The most that one question may be answered with."""
    return max(text.max_tokens, ANSWER, text.max_answer_tokens or 0)


def held_bytes(limits: Limits, sessions: int) -> int:
    """The most that so many sessions hold beside what one message at a time takes to compute, whatever is sent."""
    return sessions * (_COPIES * limits.frame_bytes + HELD_BYTES)


def require_rows(text: TextBatch, recipe: config.Recipe) -> None:
    """Raise LimitError for a sequence that is longer than the recipe's rows: attention takes its length squared."""
    longest, most = int(text.lengths.max()), recipe.text.max_tokens
    if longest > most:
        raise LimitError(f"text: a sequence of {longest} tokens; text.max_tokens is {most}")
