"""A checkpoint's tokenizer, and text that others wrote as token ids: no control token is ever read out of it."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from string import ascii_lowercase
from typing import Any, TypeVar

import rfc8785
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE, cached_file

from bitseam.errors import DataError, ModelError, first_sentence, printable

T = TypeVar("T")
_MOST_ID = 2**24  # of a token; vocabularies have up to some hundred thousand

# "<s>", "[INST]", "<|im_end|>": an added token of this shape steers a model, whether its tokenizer calls it special or
# not. Others are words that somebody added, and are read where they are written.
_MARK = re.compile(r"[^\w\s].*\w.*[^\w\s]", re.DOTALL)


def load_tokenizer(what: str, folder: str) -> Any:
    """A folder or a hub id -> its tokenizer, of the `tokenizers` library. `what` names it in errors.

    Raises ModelError, in a line, for all that cannot be loaded, is written in Python alone or has no end token.
    """
    guarded(f"{what} cannot be loaded", lambda: _require_sound(what, Path(folder)))
    tokenizer = guarded(f"{what} cannot be loaded", lambda: AutoTokenizer.from_pretrained(folder))
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(
            f"{what}: {type(tokenizer).__name__} is written in Python alone; give a folder with a tokenizer.json, for "
            "the tokenizers library"
        )
    if not isinstance(tokenizer.model_max_length, int | float):
        tokenizer.model_max_length = sys.maxsize
    tokenizer.backend_tokenizer.no_truncation()  # a recipe's limits are Bitseam's
    tokenizer.backend_tokenizer.no_padding()
    if not tokenizer.chat_template:
        tokenizer.chat_template = guarded(f"{what} cannot be loaded", lambda: _processor_template(folder))
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"{what} has no token that ends an answer: set eos_token in its tokenizer_config.json to the one that the "
            "language model was trained with"
        )
    return tokenizer


def fingerprint(tokenizer: Any, folder: str) -> str:
    """By what two sides know that they have one tokenizer: 16 digits that any language can compute, docs/payloads.md.

    tokenizer: as `load_tokenizer` gave it for the folder. Without a tokenizer.json, the one that would be saved counts.
    """
    path = _file_of(folder, "tokenizer.json")
    raw = Path(path).read_bytes() if path else tokenizer.backend_tokenizer.to_str(pretty=True).encode()
    known = {(token["content"], token["id"]) for token in json.loads(raw).get("added_tokens", [])}
    loaded = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
    facts = {
        "added": dict(loaded.items() - known),
        "begin": tokenizer.bos_token_id,
        "end": tokenizer.eos_token_id,
    }
    whole = hashlib.sha256(raw).hexdigest().encode() + b"\n" + rfc8785.dumps(facts)
    return hashlib.sha256(whole).hexdigest()[:16]


class Reader:
    """Text -> token ids, where control tokens stand in our own text alone.

    Those are special tokens, and added ones that look like markup. The tokenizer's copy that reads knows each by a
    secret name, which `own` puts into templates. What others wrote does not have it, so "</s>" in a question is
    characters, whatever the kind of the tokenizer, and all around it is read as ever.
    """

    def __init__(self, tokenizer: Any, what: str, placeholder: str = "") -> None:
        """placeholder: of images, which others may not write either. Raises ModelError where there is no such copy."""
        self._tokenizer = tokenizer
        names = {*_controls(tokenizer), placeholder} & tokenizer.get_vocab().keys()
        secret = {name: "".join(secrets.choice(ascii_lowercase) for _ in range(24)) for name in names}
        longest_first = sorted(names, key=len, reverse=True)
        self._pattern, self._names = re.compile("|".join(map(re.escape, longest_first)) or "(?!)"), secret
        self._copy = guarded(f"{what} cannot be copied", lambda: _renamed(tokenizer.backend_tokenizer, secret))
        numbers = {name: tokenizer.convert_tokens_to_ids(name) for name in names}
        if any(self._copy.token_to_id(secret[name]) != number for name, number in numbers.items()):
            raise ModelError(f"{what}: its added tokens have other ids once it is written and read again")
        self.controls = frozenset(numbers.values())

    def own(self, text: str) -> str:
        """Our text, with its control tokens, for `ids`; what others wrote may then be put into it."""
        return self._pattern.sub(lambda match: self._names[match[0]], text)

    def ids(self, text: str) -> list[int]:
        """Raises DataError for text that the tokenizer cannot read."""
        try:
            return self._copy.encode(text, add_special_tokens=False).ids
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises nothing narrower than Exception, and Rust's panics
            raise DataError(f"the tokenizer cannot read {printable(text, 80)!r}: {first_sentence(error)}") from error

    def reads(self, text: str) -> bool:
        """Whether `ids` has an answer."""
        try:
            return bool(self.ids(text))
        except DataError:
            return False

    def original(self, text: str) -> list[int]:
        """As transformers reads our text."""
        return self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=False)

    def opening(self, word: str) -> list[int]:
        """What the tokenizer puts before a text, such as a token of the beginning."""
        encoding = self._copy.encode(word)
        return encoding.ids[: encoding.special_tokens_mask.index(0)]


def _require_sound(what: str, folder: Path) -> None:
    """Raises ModelError for a file that is no JSON, or a folder without any: transformers tells it at length."""
    for path in sorted(folder.glob("*token*.json")):
        try:
            whole = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(f"{what}: {printable(str(path))} is not sound JSON: {first_sentence(error)}") from error
        if any(number > _MOST_ID for number in _ids(whole)):
            raise ModelError(f"{what}: {printable(str(path))} has a token id over {_MOST_ID:,}")
    if folder.is_dir() and not any(folder.glob("*token*")) and not any(folder.glob("vocab*")):
        raise ModelError(f"{what}: {printable(str(folder))} holds no tokenizer (tokenizer.json, tokenizer_config.json)")


def _processor_template(folder: str) -> Any:
    """The chat template where processors of vision-language models kept it before it went to the tokenizer."""
    path = _file_of(folder, LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE)
    return json.loads(Path(path).read_text(encoding="utf-8"))["chat_template"] if path else None


def _file_of(folder: str, name: str) -> str | None:
    """The path of a file of a folder or a hub id, None where there is none."""
    path: str | None = cached_file(
        folder, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    return path


def _ids(whole: Any) -> Iterator[int]:
    """Of a tokenizer's file; the library takes memory for all up to the greatest, and ends the process without it."""
    if not isinstance(whole, dict):
        return
    model, added = whole.get("model"), whole.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    yield from (v for v in vocabulary.values() if type(v) is int) if isinstance(vocabulary, dict) else ()
    for token in added if isinstance(added, list) else ():
        if isinstance(token, dict) and type(token.get("id")) is int:
            yield token["id"]
    decoder = whole.get("added_tokens_decoder")
    yield from (int(key) for key in decoder if key.isdecimal()) if isinstance(decoder, dict) else ()


def _controls(tokenizer: Any) -> set[str]:
    told = set(getattr(tokenizer, "chat_control_tokens", None) or ())
    return {
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if (token.special and len(token.content.strip()) > 1)
        or token.content in told
        or _MARK.fullmatch(token.content.strip())
    }


def _renamed(backend: Tokenizer, names: dict[str, str]) -> Tokenizer:
    """A copy whose tokens have the same ids and, where `names` has one, another name."""
    whole = json.loads(backend.to_str())
    for token in whole["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = whole["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(piece, piece): number for piece, number in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:  # some make a control token out of its characters
        merges = (merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"])
        model["merges"] = [[a, b] for a, b in merges if not names.keys() & {a, b, a + b}]
    return Tokenizer.from_str(json.dumps(whole))


def guarded(what: str, do: Callable[[], T]) -> T:
    """Run a library on files that others wrote: whatever it raises, Rust's panics too, is a ModelError."""
    try:
        return do()
    except (KeyboardInterrupt, SystemExit, ModelError):
        raise
    except BaseException as error:
        raise ModelError(f"{what}: {first_sentence(error, named=not isinstance(error, DataError))}") from error
