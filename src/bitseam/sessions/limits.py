"""What a recipe makes possible is all that a session may send: limits, and the memory that follows from them."""

from __future__ import annotations

import math

from bitseam import config
from bitseam.errors import CodecError, LimitError, ModelError, RefusedError
from bitseam.streams import Stream, build_streams
from bitseam.text.batch import TextBatch
from bitseam.text.symbols import most_symbol_bytes
from bitseam.transport import HELD_BYTES
from bitseam.wire import Limits

QUESTIONS = 64  # of one message, where the batches of training are smaller

_COPIES = 4  # of the frame that a session works on: as it came, parsed, a payload taken out of it, and as it goes back


def session_limits(recipe: config.Recipe, vocabulary: int, positions: int | None = None) -> Limits:
    """The least limits under which everything passes that the recipe lets an honest side send.

    positions: as of `require_fit`.
    """
    streams = list(build_streams(Stream, recipe.streams, recipe.seam.width).values())
    batch = max(recipe.train.batch, QUESTIONS)
    tokens = batch * recipe.text.max_tokens
    carried = {"image": (batch, recipe.seam.max_tokens), "text": (tokens,)}
    shapes = [(*carried[stream.name], stream.channels) for stream in streams]
    tables = [stream.tables.nbytes for stream in streams if stream.tables is not None]
    payloads = sum(stream.most_bytes(shape) for stream, shape in zip(streams, shapes, strict=True))
    widest = max(stream.channels for stream in streams)
    usual = Limits()
    rotation = widest**2 * sum(stream.settings.quantizer == "rate-fsq" for stream in streams)
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
        elements=max(math.prod(shape) for shape in shapes),
        batch=batch,
        streams=len(streams),
        rates=max(stream.rates for stream in streams),
        tokens=tokens,
        sequence_tokens=recipe.text.max_tokens,
        image_tokens=recipe.seam.max_tokens,
        positions=usual.positions if positions is None else positions,
        weights=weights,
        channels=widest,
        tables=max(tables, default=0),
        rotation=rotation,
        new_tokens=recipe.text.most_new_tokens,
        hello_seconds=recipe.network.hello_seconds,
        idle_seconds=recipe.network.idle_seconds,
    )


def held_bytes(limits: Limits, sessions: int) -> int:
    """The most that so many sessions hold beside what one message at a time takes to compute, whatever is sent."""
    return sessions * (_COPIES * limits.frame_bytes + HELD_BYTES)


def require_fit(recipe: config.Recipe, tokens: int, rows: int, positions: int | None) -> None:
    """Raise ModelError where the language model cannot take what the recipe allows.

    tokens: ids of the tokenizer, 0 to the highest; rows: of the token embedding; positions: of the model, if bounded.
    """
    if tokens > rows:
        raise ModelError(
            f"text.tokenizer {recipe.text.tokenizer!r} has {tokens} token ids, server.checkpoint "
            f"{recipe.server.checkpoint!r} embeddings for {rows}: give the tokenizer that belongs to the model"
        )
    if positions is not None and recipe.text.max_tokens >= positions:
        raise ModelError(
            f"text.max_tokens is {recipe.text.max_tokens}, but server.checkpoint {recipe.server.checkpoint!r} has "
            f"{positions} positions, for the image too: lower it"
        )


def require_image(tokens: int, limits: Limits) -> None:
    """Raise RefusedError where a client's images, of so many tokens, are too long for the recipe or the model."""
    most = limits.sequence_tokens
    if tokens > limits.image_tokens:
        raise RefusedError(f"the client's images are {tokens} tokens long; seam.max_tokens is {limits.image_tokens}")
    if tokens + most > limits.positions:
        raise RefusedError(
            f"the client's images are {tokens} tokens long and text.max_tokens is {most}, together {tokens + most}, "
            f"but the language model has {limits.positions} positions: lower text.max_tokens on both sides, or merge "
            "more of an image's tokens into one (client.merge)"
        )


def require_rows(text: TextBatch, limits: Limits, image_tokens: int, new: int = 0) -> None:
    """Raise LimitError for a sequence that is longer than the recipe's rows, since attention takes its length squared,
    or with its image and `new` tokens than the model has positions."""
    if image_tokens > limits.image_tokens:
        raise LimitError(f"image: {image_tokens} tokens; seam.max_tokens is {limits.image_tokens}")
    longest = int(text.lengths.max())
    if longest > limits.sequence_tokens:
        raise LimitError(f"text: a sequence of {longest} tokens; text.max_tokens is {limits.sequence_tokens}")
    if longest + image_tokens + new > limits.positions:
        raise LimitError(
            f"text: {longest} tokens, {image_tokens} of the image and {new} new ones are more than the language "
            f"model's {limits.positions} positions"
        )


def require_context(text: TextBatch, training: bool) -> None:
    """Raise CodecError for an answer that nothing predicts and, in training, for a sequence in which nothing follows
    the image."""
    if training and (text.image_at == text.lengths).any():
        raise CodecError("text: nothing follows the image of a sequence, so that nothing is learned about it")
    starts = (text.lengths.cumsum(0) - text.lengths)[(text.image_at > 0) & (text.lengths > 0)]
    if text.answers[starts].any():
        raise CodecError("text: a sequence begins with an answer, which nothing before it predicts")
