"""Folders of tokenizers as people have them: all that cannot be used is refused at load, in one line of ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizer_kinds import KINDS, byte_fallback, byte_level, save, unigram, word_level, wrap
from transformers import PreTrainedTokenizerFast

from bitseam import config
from bitseam.errors import DataError, ModelError
from bitseam.text.prompts import Prompter


def load(folder: Path | str) -> Prompter:
    return Prompter(config.Text(tokenizer=str(folder), prompt="{image}{question}"))


def edited(folder: Path, name: str, edit: Callable[[Any], None]) -> Path:
    whole = json.loads((folder / name).read_text())
    edit(whole)
    (folder / name).write_text(json.dumps(whole))
    return folder


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "half a file": (
        lambda folder: (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text()[:200]),
        r"tokenizer\.json is not sound JSON",
    ),
    "bytes": (lambda folder: (folder / "tokenizer.json").write_bytes(b"\xff\xfe\x00"), "is not sound JSON"),
    "an empty file": (lambda folder: (folder / "tokenizer_config.json").write_text(""), "_config.json is not sound"),
    "deep JSON": (lambda folder: (folder / "tokenizer.json").write_text("[" * 100_000), "is not sound JSON"),
    "a list": (lambda folder: (folder / "tokenizer.json").write_text("[1, 2]"), "cannot be loaded"),
    "a number": (lambda folder: (folder / "tokenizer_config.json").write_text("3"), "cannot be loaded"),
    "no model": (lambda folder: edited(folder, "tokenizer.json", lambda it: it.pop("model")), "cannot be loaded"),
    "an unknown model": (
        lambda folder: edited(folder, "tokenizer.json", lambda it: it["model"].update(type="Other\x1b[2J")),
        "cannot be loaded",
    ),
    "merges of nothing": (
        lambda folder: edited(folder, "tokenizer.json", lambda it: it["model"].update(merges=[["zz", "qq"]])),
        "cannot be loaded",
    ),
    "no files": (lambda folder: [path.unlink() for path in folder.iterdir()], "holds no tokenizer"),
    "weights alone": (
        lambda folder: [path.unlink() for path in folder.iterdir()] and (folder / "model.safetensors").touch(),
        "holds no tokenizer",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_folder_that_is_not_sound_is_named_in_one_line(name: str, tmp_path: Path) -> None:
    save(tmp_path, wrap(byte_level()))
    spoil, complaint = FAULTS[name]
    spoil(tmp_path)
    with pytest.raises(ModelError, match=complaint) as caught:
        load(tmp_path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 700
    assert str(tmp_path) in str(caught.value)


def test_a_name_that_is_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in (
        "nobody/nothing",
        str(tmp_path / "absent"),
        "a b/\x1b[2J",
        "no [/b]",
        "x" * 5000,
    ):
        with pytest.raises(ModelError, match="cannot be loaded") as caught:
            load(name)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 700


@pytest.mark.parametrize("make", KINDS)
def test_a_tokenizer_without_an_end_is_refused(make: Any, tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make(), unk_token="<unk>")
    with pytest.raises(ModelError, match="no token that ends an answer: set eos_token in"):
        load(save(tmp_path, tokenizer))


def test_neither_beginning_padding_nor_unknown_is_needed(tmp_path: Path) -> None:
    prompter = load(save(tmp_path, PreTrainedTokenizerFast(tokenizer_object=byte_level(), eos_token="</s>")))
    assert prompter.batch(["a cat"], ["yes"]).ids[-1] == prompter.end


@pytest.mark.parametrize("name", ["ByT5Tokenizer", "CTRLTokenizer"])
def test_a_tokenizer_in_python_alone_is_refused_by_name(name: str, tmp_path: Path) -> None:
    files = {"vocab.json": '{"a": 0, "<unk>": 1}', "merges.txt": "#version: 0.2\n"}
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    with pytest.raises(ModelError, match=f"{name} is written in Python alone"):
        load(tmp_path)


@pytest.mark.parametrize("make", KINDS)
def test_a_fingerprint_of_every_kind_says_what_it_is(make: Any, tmp_path: Path) -> None:
    one, other = wrap(make()), wrap(make(), ["kidney"])
    prints = [load(save(tmp_path / str(i), tokenizer)).fingerprint for i, tokenizer in enumerate((one, one, other))]
    assert prints[0] == prints[1] != prints[2]


def test_a_folder_without_tokenizer_json_has_the_fingerprint_of_the_one_that_is_saved(tmp_path: Path) -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz?", "cat", "dog"]
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "vocab.txt").write_text("\n".join(pieces))
    config = {"tokenizer_class": "BertTokenizer", "eos_token": "[SEP]"}
    (tmp_path / "plain" / "tokenizer_config.json").write_text(json.dumps(config))
    plain = load(tmp_path / "plain")
    plain.tokenizer.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer.json").exists()
    assert load(tmp_path / "saved").fingerprint == plain.fingerprint


@pytest.mark.parametrize("change", [{"eos_token": "<|im_end|>"}, {"bos_token": None}, {"pad_token": "<pad>"}])
def test_what_stands_beside_tokenizer_json_changes_the_fingerprint(change: dict[str, Any], tmp_path: Path) -> None:
    save(tmp_path, wrap(word_level()))
    before = load(tmp_path).fingerprint
    edited(tmp_path, "tokenizer_config.json", lambda whole: whole.update(change))
    assert load(tmp_path).fingerprint != before


def test_what_a_file_says_of_cutting_and_padding_is_not_done(tmp_path: Path) -> None:
    tokenizer = wrap(word_level())
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    tokenizer.backend_tokenizer.save(str(tmp_path / "cut.json"))
    save(tmp_path, wrap(word_level()))
    (tmp_path / "tokenizer.json").write_text((tmp_path / "cut.json").read_text())
    (tmp_path / "cut.json").unlink()
    prompter = load(tmp_path)
    before = prompter.fingerprint
    assert len(prompter.batch(["is there a cat or a dog"]).ids) == 7
    assert prompter.fingerprint == before == load(tmp_path).fingerprint


def test_the_vocabulary_reaches_to_the_largest_id(tmp_path: Path) -> None:
    save(tmp_path, wrap(word_level()))

    def leave_a_gap(whole: Any) -> None:
        whole["model"]["vocab"]["far"] = 500

    prompter = load(edited(tmp_path, "tokenizer.json", leave_a_gap))
    assert prompter.vocabulary == 501


def test_text_that_a_tokenizer_cannot_read_is_a_row_at_fault(tmp_path: Path) -> None:
    save(tmp_path, wrap(word_level()))
    edited(tmp_path, "tokenizer.json", lambda whole: whole["model"].update(unk_token="[nowhere]"))
    prompter = load(tmp_path)
    with pytest.raises(DataError, match="the tokenizer cannot read 'xyzzy"):
        prompter.batch(["xyzzy"])


@pytest.mark.parametrize("make", [byte_level, byte_fallback, unigram])
def test_classes_of_families_read_as_ever(make: Any, tmp_path: Path) -> None:
    """Families' own classes build their tokenizer anew when they are loaded."""
    family = {byte_level: "Qwen2Tokenizer", byte_fallback: "LlamaTokenizer", unigram: "PreTrainedTokenizerFast"}[make]
    save(tmp_path, wrap(make()))
    edited(tmp_path, "tokenizer_config.json", lambda whole: whole.update(tokenizer_class=family))
    prompter = load(tmp_path)
    for question in ("what is this?", "a red  cat 🐱", "</s>"):
        batch = prompter.batch([question]).ids.tolist()
        if question != "</s>":
            assert batch[-3:] == prompter.tokenizer(question, add_special_tokens=False)["input_ids"][-3:]
        assert prompter.end not in batch
