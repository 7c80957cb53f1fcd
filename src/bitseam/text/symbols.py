"""How ragged batches of token ids cross the wire.

Shapes: B sequences about I images, N tokens of all sequences together (no padding).

On the wire a batch is one stream of S symbols, little-endian, two bytes each, or four where the vocabulary needs them,
compressed whole. Each sequence is

    FIRST or FURTHER    of the sequences about an image
    its tokens          5 + id; HIDDEN for a prompt's token where the prompt crosses as codes
    HERE                among them: the image's place, before token image_at or behind the last
    TURN                before each token that is part of an answer where the one before it is not, or the reverse

so that the layout repeats wherever the words do, and costs next to nothing beside them.

The compression is deflate (RFC 1951) with a preset dictionary: symbols of the batches that the client calibrated on,
the last 32768 bytes of them. A batch repeats what came before it: the same prompt, the same question about another
image. Bytes of 44 questions about 10 images, 412 tokens of a vocabulary of 32000; of 1435 tokens of prose, which has no
such past; and of one question, with the layout, packing at 15 bits without it:

    packed at 15 bits                                  774    2691
    distinct ids, then indices packed                  456    2365
    distinct ids, then indices at their entropy        361    2056   and the tables or counts
    LZMA                                               219    2033      29
    deflate                                            228    2168      20
    deflate after four batches                         106
    deflate after eight batches (the demo)              96               5
    deflate after sixteen batches                       89
    context mixing, an ideal coder, order 2            155    1924   but a coder of our own, in Python
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bitseam.errors import CodecError
from bitseam.text.batch import TextBatch
from bitseam.wire import messages_pb2 as pb

# Symbols that are no ids; those follow from _IDS on.
_FIRST, _FURTHER, _HERE, _TURN, _HIDDEN, _IDS = range(6)

DICTIONARY = 2**15  # bytes: as far as deflate looks back


def text_message(text: TextBatch, vocabulary: int, dictionary: bytes = b"", hidden: bool = False) -> pb.Text:
    """A ragged batch as a message. dictionary: as both sides have it. hidden: prompts cross as codes, and their ids
    stay home."""
    return pb.Text(
        sequences=len(text.lengths),
        tokens=len(text.ids),
        symbols=deflate(_raw(text, vocabulary, hidden), dictionary),
    )


def dictionary_of(text: TextBatch, vocabulary: int, hidden: bool) -> bytes:
    """The preset dictionary that a batch makes. hidden: prompts cross as codes, and their ids stay home."""
    return _raw(text, vocabulary, hidden)[-DICTIONARY:]


def read_dictionary(deflated: bytes) -> bytes:
    """A dictionary as it travels -> as `text_message` takes it. Raises CodecError for what is none."""
    return _inflate(deflated, b"", DICTIONARY, "text: dictionary")


def register_dictionary(model: nn.Module) -> None:
    """Give a half its buffer `text_dictionary`, uint8 (DICTIONARY,), so that its checkpoints have it: zeros until
    calibrated."""
    model.register_buffer("text_dictionary", torch.zeros(DICTIONARY, dtype=torch.uint8))


def kept_dictionary(model: nn.Module) -> bytes:
    """That of a half, as `text_message` takes it."""
    return model.get_buffer("text_dictionary").cpu().numpy().tobytes()


def keep_dictionary(model: nn.Module, raw: bytes) -> None:
    """Put what `dictionary_of` made into a half."""
    whole = bytearray(raw.rjust(DICTIONARY, b"\0"))
    model.get_buffer("text_dictionary").copy_(torch.frombuffer(whole, dtype=torch.uint8))


def deflate(raw: bytes, dictionary: bytes = b"") -> bytes:
    """Raw deflate, without a header. A dictionary crosses likewise, without one."""
    stream = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zlib.Z_DEFAULT_STRATEGY, dictionary)
    return stream.compress(raw) + stream.flush()


def read_text(message: pb.Text, vocabulary: int, dictionary: bytes = b"", hidden: bool = False) -> TextBatch:
    """The inverse of `text_message`. Raises CodecError for what it makes of no batch.

    Time and memory are bounded by the sequences and tokens that the message says, whatever its bytes.
    """
    symbols = _inflated(message, vocabulary, dictionary)
    starts, places = np.flatnonzero(symbols <= _FURTHER), np.flatnonzero(symbols == _HERE)
    tokens = symbols >= _HIDDEN
    if symbols[:1].tolist() != [_FIRST]:
        raise CodecError("text: it begins with no first sequence about an image")
    if (len(starts), np.count_nonzero(tokens)) != (message.sequences, message.tokens):
        raise CodecError(
            f"text: {len(starts)} sequences and {np.count_nonzero(tokens)} tokens, where {message.sequences} and "
            f"{message.tokens} were said"
        )
    if not np.array_equal(np.searchsorted(starts, places, "right"), np.arange(1, len(starts) + 1)):
        raise CodecError("text: not one image in each sequence")
    if symbols.max() >= _IDS + vocabulary:
        raise CodecError(f"text: token {symbols.max() - _IDS} is outside the vocabulary of {vocabulary}")
    seen, turns = (np.cumsum(kind) for kind in (tokens, symbols == _TURN))  # up to each symbol and with it
    turns -= np.repeat(turns[starts], np.diff(starts, append=len(symbols)))
    parts = {
        "ids": np.maximum(symbols[tokens] - _IDS, 0),
        "lengths": np.diff(seen[starts], append=message.tokens),
        "image_at": seen[places] - seen[starts],
        "image": np.cumsum(symbols[starts] == _FIRST) - 1,
        "answers": turns[tokens] % 2 == 1,
    }
    text = TextBatch(**{name: torch.from_numpy(part) for name, part in parts.items()})
    # Each batch has one stream of symbols: marks that are out of order, doubled or idle are not in it.
    if not np.array_equal(_symbols(text, hidden), symbols):
        raise CodecError("text: symbols that no batch gives")
    return text


def _raw(text: TextBatch, vocabulary: int, hidden: bool) -> bytes:
    """The symbols of a batch, before they are compressed. Raises CodecError for an id outside the vocabulary."""
    if text.ids.numel() and not 0 <= text.ids.min() <= text.ids.max() < vocabulary:
        raise CodecError(f"text: ids from {text.ids.min()} to {text.ids.max()} in a vocabulary of {vocabulary}")
    return _symbols(text, hidden).astype(_symbol_type(vocabulary)).tobytes()


def _symbols(text: TextBatch, hidden: bool) -> NDArray[np.int64]:
    """The symbols (S,) of a batch. hidden: leave out the ids of prompts."""
    parts = (text.ids, text.lengths, text.image_at, text.image, text.answers)
    ids, lengths, image_at, image, answers = (part.numpy() for part in parts)
    every, first = np.arange(len(lengths)), np.cumsum(lengths) - lengths
    of = np.repeat(every, lengths)
    before = np.roll(answers, 1)
    before[first[lengths > 0]] = False
    turns = np.flatnonzero(answers != before)
    symbols = (
        np.where(np.diff(image, prepend=-1) != 0, _FIRST, _FURTHER),
        np.full(len(every), _HERE),
        np.full(len(turns), _TURN),
        np.where(answers, ids + _IDS, _HIDDEN) if hidden else ids + _IDS,
    )
    sequence = np.concatenate([every, every, of[turns], of])
    place = np.concatenate([first, first + image_at, turns, np.arange(len(ids))])
    kind = np.repeat(np.arange(4), [len(part) for part in symbols])
    return np.concatenate(symbols)[np.lexsort((kind, place, sequence))]


def most_symbol_bytes(sequences: int, tokens: int, vocabulary: int) -> int:
    """The longest stream of so many: what deflate cannot make smaller it makes longer by less than a sixteenth."""
    raw = _most_symbols(sequences, tokens) * _symbol_type(vocabulary).itemsize
    return raw + raw // 16 + 1024


def _most_symbols(sequences: int, tokens: int) -> int:
    return 2 * (sequences + tokens)  # a sequence has its start and HERE, and a token may have a TURN


def _inflated(message: pb.Text, vocabulary: int, dictionary: bytes) -> NDArray[np.int64]:
    kind = _symbol_type(vocabulary)
    most = _most_symbols(message.sequences, message.tokens) * kind.itemsize
    raw = _inflate(message.symbols, dictionary, most, "text")
    if len(raw) % kind.itemsize:
        raise CodecError(f"text: {len(raw)} bytes are no symbols of {kind.itemsize} bytes")
    return np.frombuffer(raw, kind).astype(np.int64)


def _inflate(deflated: bytes, dictionary: bytes, most: int, what: str) -> bytes:
    """Raises CodecError for what `deflate` does not make of so many bytes at the most."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS, zdict=dictionary)
    try:
        raw = stream.decompress(deflated, most + 1)
    except zlib.error as error:
        raise CodecError(f"{what}: {len(deflated)} bytes that are not deflate's: {error}") from error
    if not stream.eof or stream.unused_data or len(raw) > most:
        raise CodecError(f"{what}: {len(deflated)} bytes are not of at most {most} bytes")
    return raw


def _symbol_type(vocabulary: int) -> np.dtype[np.unsignedinteger]:
    return np.dtype("<u2" if vocabulary + _IDS <= 2**16 else "<u4")
