"""vectors/*.json hold in both directions, and are what `make vectors` writes today."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from text_cases import batch_of, symbols_of, whole_dictionary
from vector_cases import CASES
from vector_numbers import digest, read
from write_vectors import FOLDER, documents, text_of

from bitseam import config
from bitseam.codecs import canonical, codec_from_config
from bitseam.codecs.packing import pack, unpack
from bitseam.errors import CodecError
from bitseam.text.prompts import Prompter
from bitseam.text.symbols import read_text, text_message
from bitseam.wire import messages_pb2 as pb

FILES = {path.stem: json.loads(path.read_text()) for path in FOLDER.glob("*.json")}


def vectors(*names: str, **which: bool) -> pytest.MarkDecorator:
    """Those of some files that have a member, or not."""
    found = [
        pytest.param(vector, id=f"{name}-{i}-{vector.get('name', '')}")
        for name in names
        for i, vector in enumerate(FILES[name]["vectors"])
        if all((member in vector) == there for member, there in which.items())
    ]
    assert found
    return pytest.mark.parametrize("vector", found)


def test_the_command_writes_these_files() -> None:
    due = {name: json.loads(text_of(document)) for name, document in documents().items()}
    assert FILES.keys() == {*due, "session"}  # which test_wire_vectors.py has
    for name in due:
        if name != "symbols":  # whose compression is the library's choice
            assert FILES[name] == due[name], name
    kept, made = ([v["name"] for v in whole["symbols"]["vectors"]] for whole in (FILES, due))
    assert kept == made


@vectors(*CASES, refused=False, input=True)
def test_an_encoder_makes_these_bytes(vector: dict[str, Any]) -> None:
    codec = codec_from_config(json.loads(vector["codec"]))
    assert codec.encode(read(vector["input"], vector["shape"])).hex() == vector["payload"]


@vectors(*CASES, refused=False)
def test_a_decoder_gives_these_numbers(vector: dict[str, Any]) -> None:
    codec, decoded = codec_from_config(json.loads(vector["codec"])), vector["decoded"]
    assert canonical(codec.config()) == vector["codec"]
    x = codec.decode(bytes.fromhex(vector["payload"]), vector["shape"])
    if isinstance(decoded, list):
        assert torch.equal(x, read(decoded, vector["shape"]))
    else:
        assert digest(x) == decoded["sha256"]


@vectors(*CASES, refused=True, payload=True)
def test_these_bytes_are_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(CodecError):
        codec_from_config(json.loads(vector["codec"])).decode(bytes.fromhex(vector["payload"]), vector["shape"])


@vectors(*CASES, refused=True, payload=False)
def test_these_inputs_are_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(CodecError):
        codec_from_config(json.loads(vector["codec"])).encode(read(vector["input"], vector["shape"]))


@vectors("packing", refused=False)
def test_symbols_are_packed_and_unpacked(vector: dict[str, Any]) -> None:
    levels, symbols, payload = vector["levels"], vector["symbols"], bytes.fromhex(vector["payload"])
    assert pack(np.array(symbols), levels) == payload
    assert unpack(payload, len(symbols), levels).tolist() == symbols


@vectors("packing", refused=True)
def test_packed_symbols_are_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(CodecError, match=r"padding|word"):
        unpack(bytes.fromhex(vector["payload"]), vector["count"], vector["levels"])


@vectors("configurations", refused=False)
def test_a_configuration_has_one_text(vector: dict[str, Any]) -> None:
    assert canonical(vector["given"]) == vector["text"]


@vectors("configurations", refused=True)
def test_a_configuration_is_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(CodecError):
        canonical(vector["given"])


def message_of(vector: dict[str, Any]) -> pb.Text:
    told = {"sequences": vector["sequences"], "tokens": vector["tokens"], "symbols": bytes.fromhex(vector["symbols"])}
    return pb.Text(**told)


@vectors("symbols", refused=False)
def test_symbols_cross_in_both_directions(vector: dict[str, Any]) -> None:
    vocabulary, dictionary = vector["vocabulary"], whole_dictionary(bytes.fromhex(vector.get("dictionary", "")))
    rows = [(r["image"], [i or 0 for i in r["ids"]], r["image_at"], r["answers"]) for r in vector["batch"]]
    batch = batch_of(rows)
    back = read_text(message_of(vector), vocabulary, dictionary, vector["codes"])
    assert all(torch.equal(getattr(back, name), getattr(batch, name)) for name in vars(batch))
    assert symbols_of(bytes.fromhex(vector["symbols"]), vocabulary, dictionary) == vector["raw"]
    again = text_message(batch, vocabulary, dictionary, vector["codes"])
    assert symbols_of(again.symbols, vocabulary, dictionary) == vector["raw"]
    assert (again.sequences, again.tokens) == (vector["sequences"], vector["tokens"])


@vectors("symbols", refused=True)
def test_symbols_are_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(CodecError, match="text: "):
        read_text(message_of(vector), vector["vocabulary"], hidden=vector["codes"])


@vectors("fingerprints")
def test_a_tokenizer_has_this_fingerprint(vector: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(vector["tokenizer"], encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(vector["config"], encoding="utf-8")
    prompter = Prompter(config.Text(str(tmp_path), "what {image} {question}"))
    assert prompter.fingerprint == vector["fingerprint"]


def test_each_codec_has_vectors_of_every_kind() -> None:
    for name in CASES:
        rows = FILES[name]["vectors"]
        assert {json.loads(row["codec"])["id"] for row in rows} == {name}
        assert any("decoded" in row for row in rows)
        assert any("refused" in row and "payload" in row for row in rows)
