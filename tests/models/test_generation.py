"""A checkpoint's settings for `generate` change no answer, and its own stop tokens end one."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import WIDTH, Tiny, make_recipe
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from bitseam.models.proof import prove
from bitseam.models.server import ServerModel, Ways
from bitseam.runs.checkpoint import (
    Identity,
    build_client,
    build_server,
    load_server,
    save_client,
    save_server,
)
from bitseam.runs.merge import BitseamModel, merge
from bitseam.text.prompts import Prompter

QUESTIONS = ["is this a cat ?", "dog ?", "what is there red blue ?"]
NEW = 6
EVERY = [Ways(answers="together"), Ways(answers="alone"), Ways(answers="uncached")]


def checkpoint(tiny: Tiny, folder: Path, generation: Any = None, **changed: Any) -> str:
    """A tiny language model whose answers vary and do not end by themselves, with settings for `generate`."""
    model = LlamaForCausalLM(LlamaConfig.from_pretrained(tiny.language, tie_word_embeddings=False))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3, generator=generator)
    model.save_pretrained(folder)
    raw = json.loads((folder / "config.json").read_text()) | {"eos_token_id": None} | changed
    (folder / "config.json").write_text(json.dumps(raw))
    (folder / "generation_config.json").write_text(json.dumps(generation or {}))
    return str(folder)


def answers(tiny: Tiny, folder: str, ways: Ways, end: int = 2, streamer: Any = None, **changes: Any) -> torch.Tensor:
    recipe = make_recipe(
        tiny, server__checkpoint=folder, streams__image={"quantizer": "none", "codec": "fp32"}, **changes
    )
    model = build_server(recipe, str).eval()
    model.ways = ways
    return ask(model, recipe, end, streamer)


def ask(model: ServerModel, recipe: Any, end: int = 2, streamer: Any = None) -> torch.Tensor:
    image = torch.randn(3, 4, WIDTH, generator=torch.Generator().manual_seed(2)) * 3
    return model.generate(Prompter(recipe.text).batch(QUESTIONS), {"image": image}, NEW, end, streamer)


@pytest.fixture
def plain(tiny: Tiny, tmp_path: Path) -> torch.Tensor:
    """Answers without settings, (3, NEW)."""
    tokens = answers(tiny, checkpoint(tiny, tmp_path / "plain"), EVERY[0], end=3)
    assert 3 not in tokens
    assert tokens.shape == (3, NEW)
    assert tokens[0, 2] not in tokens[0, :2]  # where it ends an answer, two others come before it
    return tokens


SETTINGS: list[dict[str, Any]] = [
    {"num_beams": 3},
    {"num_beams": 2, "num_return_sequences": 2},
    {"repetition_penalty": 5.0},
    {"no_repeat_ngram_size": 1},
    {"min_new_tokens": 5, "eos_token_id": 2},
    {"return_dict_in_generate": True, "output_scores": True},
    {"do_sample": True, "temperature": 5.0, "top_k": 3},
    {"max_length": 3},
    {"max_new_tokens": 1},
    {"forced_eos_token_id": 5},
    {"suppress_tokens": list(range(12))},
    {"bad_words_ids": [[7], [8], [9]]},
    {"exponential_decay_length_penalty": [1, 3.0], "eos_token_id": 2},
    {"cache_implementation": "static"},
    {"use_cache": False},
    {"max_time": 0.0},
    {"temperature": 0.5},  # invalid without do_sample
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_M9_settings_of_the_checkpoint_change_nothing(
    tiny: Tiny, tmp_path: Path, plain: torch.Tensor, settings: dict[str, Any]
) -> None:
    folder = checkpoint(tiny, tmp_path / "set", settings)
    ours = answers(tiny, folder, EVERY[0])
    expected = ended(plain, {2}, 2)[:, : ours.shape[1]]
    assert ours.tolist() == expected.tolist()
    recipe = make_recipe(tiny, server__checkpoint=folder)
    model = build_server(recipe, str)
    out = save_server(model, recipe, Identity("ab", 1), tmp_path / "out")  # whatever the settings are, they are kept
    kept = json.loads((out / "language" / "generation_config.json").read_text())
    assert settings.items() <= kept.items()


def ended(tokens: torch.Tensor, stops: set[int], end: int) -> torch.Tensor:
    """Each answer up to its first stop token, `end` from there on."""
    after = torch.isin(tokens, torch.tensor(sorted(stops))).cumsum(1) > 0
    return torch.where(after, end, tokens)


class Heard:
    def __init__(self) -> None:
        self.columns: list[list[int]] = []
        self.over = False

    def put(self, value: torch.Tensor) -> None:
        if value.numel():
            self.columns.append(value.tolist())

    def end(self) -> None:
        self.over = True


@pytest.mark.parametrize("ways", EVERY, ids=lambda ways: ways.answers)
@pytest.mark.parametrize("place", ["generation list", "generation", "config list", "config"])
def test_D15_the_models_own_stop_tokens_end_an_answer(
    tiny: Tiny, tmp_path: Path, plain: torch.Tensor, place: str, ways: Ways
) -> None:
    stop = int(plain[0, 2])
    several = [13, stop] if "list" in place else stop
    where = {"generation": {"eos_token_id": several}} if "generation" in place else {"eos_token_id": several}
    heard, end = Heard(), 1
    ours = answers(tiny, checkpoint(tiny, tmp_path / "set", **where), ways, end, heard)
    stops = {stop, end, *([13] if "list" in place else [])}
    expected = ended(plain, stops, end)
    assert (expected == end).any()
    assert stop == end or not (ours == stop).any()
    whole = torch.nn.functional.pad(ours, (0, NEW - ours.shape[1]), value=end)
    assert whole.tolist() == expected.tolist()
    assert torch.tensor(heard.columns).T.tolist() == ours.tolist()
    assert heard.over


@pytest.mark.parametrize("changed", [{"return_dict": False}, {"use_cache": False}, {"output_hidden_states": True}])
def test_M9_neither_do_those_of_its_configuration(tiny: Tiny, tmp_path: Path, changed: dict[str, Any]) -> None:
    recipe = make_recipe(tiny, server__checkpoint=checkpoint(tiny, tmp_path / "set", **changed))
    assert prove(build_server(recipe, str), recipe).packs


@pytest.mark.parametrize("tune", ["full", "lora", "frozen"])
def test_M8_a_merged_model_answers_as_the_split_did(tiny: Tiny, tmp_path: Path, plain: torch.Tensor, tune: str) -> None:
    folder = checkpoint(tiny, tmp_path / "set", {"eos_token_id": [13, int(plain[0, 2])], "repetition_penalty": 5.0})
    recipe = make_recipe(tiny, server__checkpoint=folder, server__tune=tune, client__rate=0.0)
    client, server = build_client(recipe, str), build_server(recipe, str)
    client.streams["image"].quantizer.calibrate(torch.randn(9, WIDTH))
    with torch.no_grad():
        for parameter in server.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    halves = [
        save(half, recipe, Identity("ab", 3), tmp_path) for save, half in ((save_client, client), (save_server, server))
    ]
    merge(*halves, tmp_path / "merged", str)
    whole = BitseamModel.from_pretrained(tmp_path / "merged").eval()
    split = load_server(halves[1], str)[0].eval()
    split.ways = prove(split, recipe).ways
    assert whole.server.ways == split.ways == replace(Ways("packed"), answers="together")
    assert whole.server.language.stops == split.language.stops == {13, int(plain[0, 2])}
    assert ask(whole.server, recipe).tolist() == ask(split, recipe).tolist()
    image = Image.effect_noise((60, 60), 80).convert("RGB")
    first = whole.answer(image, QUESTIONS[0], 8)
    shutil.rmtree(tmp_path / "merged")  # the tokenizer is read once
    assert whole.answer(image, QUESTIONS[0], 8) == first


@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head"]], ids=str)
def test_M8_adapters_on_a_tied_embedding_or_head_merge(tiny: Tiny, tmp_path: Path, targets: list[str]) -> None:
    recipe = make_recipe(tiny, server__tune="lora", server__lora__targets=targets)
    client, server = build_client(recipe, str), build_server(recipe, str)
    assert server.language.base.config.tie_word_embeddings
    client.streams["image"].quantizer.calibrate(torch.randn(9, WIDTH))
    with torch.no_grad():
        for parameter in server.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.1)
    merge(
        save_client(client, recipe, Identity("ab", 3), tmp_path),
        save_server(server, recipe, Identity("ab", 3), tmp_path),
        tmp_path / "merged",
        str,
    )
    whole = BitseamModel.from_pretrained(tmp_path / "merged").eval()
    text, image = Prompter(recipe.text).batch(["is this a cat ?"], ["yes"]), torch.randn(1, 2, WIDTH)
    split = server.eval().answer_logits(text, {"image": image})[0]
    torch.testing.assert_close(whole.server.answer_logits(text, {"image": image})[0], split, rtol=1e-4, atol=1e-5)
