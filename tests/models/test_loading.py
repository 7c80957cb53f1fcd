"""A checkpoint is loaded whole, or refused in one line that says what it lacks; adapters go where they are asked to."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import WORDS, Tiny, make_recipe
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_models import saved

from bitseam import config
from bitseam.errors import ModelError
from bitseam.models.language.half import load_language_half
from bitseam.models.language.loading import load_token_embedding
from bitseam.models.vision.half import load_vision_half
from bitseam.runs.checkpoint import (
    Identity,
    build_client,
    build_server,
    load_client,
    load_server,
    save_client,
    save_server,
)
from bitseam.text.prompts import Prompter


def without(folder: str, *keys: str) -> None:
    path = Path(folder) / "model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if k not in keys}, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (["model.layers.1.mlp.up_proj.weight"], r"1 tensors .*\(model.layers.1.mlp.up_proj.weight\)"),
        (["lm_head.weight"], r"1 tensors .*\(lm_head.weight\)"),
        ([f"model.layers.0.self_attn.{x}_proj.weight" for x in "qkvo"], r"4 tensors .* and 1 more\)"),
    ],
)
def test_M11_a_tensor_that_is_missing_is_named(tmp_path: Path, keys: list[str], told: str) -> None:
    folder = saved(tmp_path, "LlamaConfig")
    without(folder, *keys)
    with pytest.raises(ModelError, match=told):
        load_language_half(config.Server(folder, "full"))


def test_M11_a_tied_head_is_not_missing_and_a_tensor_of_another_shape_is_no_tensor(tmp_path: Path) -> None:
    folder = saved(tmp_path / "tied", "LlamaConfig", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(f"{folder}/model.safetensors")
    load_language_half(config.Server(folder, "full"))
    folder = saved(tmp_path / "other", "LlamaConfig")
    path = Path(folder) / "model.safetensors"
    tensors = load_file(path) | {"model.norm.weight": torch.ones(31)}
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ModelError, match=r"model.norm.weight is \[31\] and not \[32\]") as caught:
        load_language_half(config.Server(folder, "full"))
    assert "\n" not in str(caught.value)


def test_M11_a_llava_that_lacks_a_tensor_of_its_language_half(tiny: Tiny, tmp_path: Path) -> None:
    transformers.LlavaForConditionalGeneration.from_pretrained(tiny.llava).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    gone = next(key for key in tensors if key.endswith("layers.0.mlp.up_proj.weight"))
    save_file({k: v for k, v in tensors.items() if k != gone}, path, {"format": "pt"})
    with pytest.raises(ModelError, match=r"1 tensors of the model .*layers.0.mlp.up_proj.weight"):
        load_language_half(config.Server(str(tmp_path), "full"))


def test_M11_a_tensor_without_a_place_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = saved(tmp_path, "LlamaConfig")
    path = Path(folder) / "model.safetensors"
    save_file(load_file(path) | {"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}, path, {"format": "pt"})
    load_language_half(config.Server(folder, "full"))
    assert "1 tensors of its files have no place in it: model.layers.0.self_attn.q_proj.bias" in caplog.text


UNFIT = {
    "t5": ("T5Config", {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}),
    "clip": ("CLIPConfig", {}),
    "llava_next": ("LlavaNextConfig", {}),
    "vit": ("ViTConfig", {}),
    "gemma3": ("Gemma3Config", {}),
    "bart": ("BartConfig", {"is_encoder_decoder": True}),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_M17_an_unfit_checkpoint_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    name, settings = UNFIT[kind]
    getattr(transformers, name)(**settings).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=rf"{kind}.*give a causal language model") as caught:
        load_language_half(config.Server(str(tmp_path), "full"))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


@pytest.mark.parametrize("raw", ['{"model_type": "openelm"}', '{"model_type": "nothing"}', "{}", "no json", None])
def test_M17_an_unknown_checkpoint_is_refused_in_one_line(tmp_path: Path, raw: str | None) -> None:
    if raw is not None:
        (tmp_path / "config.json").write_text(raw)
    with pytest.raises(ModelError, match=r"server.checkpoint .* cannot be loaded: ") as caught:
        load_language_half(config.Server(str(tmp_path), "full"))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(tmp_path))


EMBEDDED: dict[str, dict[str, Any]] = {
    "Gemma3TextConfig": {"head_dim": 8},
    "GemmaConfig": {"head_dim": 8},
    "GPT2Config": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "OPTConfig": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "BertConfig": {"is_decoder": True},
    "MambaConfig": {"state_size": 8},
    "RwkvConfig": {},
    "BloomConfig": {},
    "XGLMConfig": {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48, "scale_embedding": True},
}


@pytest.mark.parametrize("kind", EMBEDDED)
def test_M6_the_clients_embeddings_are_what_the_model_looks_up(tmp_path: Path, kind: str) -> None:
    folder = saved(tmp_path, kind, **EMBEDDED[kind])
    whole = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(len(WORDS))
    embedding = load_token_embedding(folder)
    torch.testing.assert_close(embedding(ids), whole.get_input_embeddings()(ids), rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in embedding.parameters())


@pytest.mark.parametrize("change", ["sharded", "old prefix", "no prefix", "head alone", "llava", "bf16"])
def test_M6_wherever_the_table_lies(tiny: Tiny, tmp_path: Path, change: str) -> None:
    whole: Any = transformers.AutoModelForCausalLM.from_pretrained(tiny.language)
    expected = whole.get_input_embeddings().weight
    folder, path = str(tmp_path), tmp_path / "model.safetensors"
    whole.save_pretrained(folder, max_shard_size="5KB" if change == "sharded" else "5GB")
    name = "model.embed_tokens.weight"
    tensors = load_file(path) if path.exists() else {}
    if change == "sharded":
        assert len(list(tmp_path.glob("*.safetensors"))) > 2
    elif change == "old prefix":
        save_file({f"language_model.{k}": v for k, v in tensors.items()}, path, {"format": "pt"})
    elif change == "no prefix":
        save_file({k.removeprefix("model."): v for k, v in tensors.items()}, path, {"format": "pt"})
    elif change == "head alone":  # tied
        tensors["lm_head.weight"] = tensors.pop(name)
        save_file(tensors, path, {"format": "pt"})
    elif change == "llava":
        folder = tiny.llava
        expected = transformers.LlavaForConditionalGeneration.from_pretrained(folder).get_input_embeddings().weight
    elif change == "bf16":
        whole.to(torch.bfloat16).save_pretrained(folder)
        expected = whole.get_input_embeddings().weight.float()
    weight = load_token_embedding(folder).weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, expected)


def test_M6_a_checkpoint_without_the_table_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    folder = saved(tmp_path, "LlamaConfig")
    without(folder, "model.embed_tokens.weight")
    with pytest.raises(ModelError, match=r"no model.embed_tokens.weight of shape \(16, 32\)"):
        load_token_embedding(folder)


def test_M6_no_other_tensor_is_read(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    class Watched:
        def __init__(self, *args: Any) -> None:
            self._file = safe_open(*args)

        def __enter__(self) -> Watched:
            self._opened = self._file.__enter__()
            return self

        def __exit__(self, *error: Any) -> None:
            self._file.__exit__(*error)

        def get_tensor(self, key: str) -> torch.Tensor:
            read.append(key)
            return self._opened.get_tensor(key)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._opened, name)

    monkeypatch.setattr("bitseam.models.language.loading.safe_open", Watched)
    load_token_embedding(tiny.language)
    assert read == ["model.embed_tokens.weight"]


def test_M6_prompts_as_codes_train_as_prompts_as_ids(tiny: Tiny, tmp_path: Path) -> None:
    folder = saved(tmp_path / "gemma", "Gemma3TextConfig", head_dim=8, sliding_window=64)
    exact = {"quantizer": "none", "codec": "fp32"}
    recipe = make_recipe(
        tiny,
        server__checkpoint=folder,
        streams__text=exact,
        streams__image=exact,
    )
    client, server = build_client(recipe, str), build_server(recipe, str)
    text = Prompter(recipe.text).batch(["is this a cat ?", "dog ?"], ["yes", "no"])
    image = torch.randn(2, 4, 32)
    embeddings = server.language.embed(text.ids[~text.answers])
    prompt = client.senders()["text"](client.embedding(text.ids[~text.answers])).levels
    assert torch.equal(prompt, embeddings)
    plain = build_server(replace(recipe, streams={"image": recipe.streams["image"]}), str)
    coded, known = server.loss(text, {"image": image, "text": prompt}), plain.loss(text, {"image": image})
    torch.testing.assert_close(coded, known)
    save_client(client, recipe, Identity("", 0), tmp_path / "out")
    assert not any("embedding" in name for name in load_file(tmp_path / "out/client/step-000000/model.safetensors"))
    again, _, _ = load_client(tmp_path / "out/client/step-000000", str)
    assert torch.equal(again.senders()["text"](again.embedding(text.ids[~text.answers])).levels, prompt)


def test_M11_an_adapter_that_lacks_a_tensor(tiny: Tiny, tmp_path: Path) -> None:
    recipe = make_recipe(tiny, server__tune="lora")
    folder = save_server(build_server(recipe, str), recipe, Identity("", 1), tmp_path)
    load_server(folder, str)
    path = folder / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    gone = sorted(tensors)[0]
    save_file({k: v for k, v in tensors.items() if k != gone}, path, {"format": "pt"})
    with pytest.raises(ModelError, match=rf"adapter: 1 tensors of the adapter are missing \({gone}"):
        load_server(folder, str)


def _sharded(folder: Path) -> list[Path]:
    whole = transformers.AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    whole.save_pretrained(folder, max_shard_size="8KB")
    return sorted(folder.glob("model-*.safetensors"))


def _settings(folder: Path, file: str = "config.json", **changes: Any) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("adapter_model.safetensors", b"cut off", "adapter_model.safetensors cannot be loaded: it is cut off"),
        ("adapter_model.safetensors", None, "the adapter cannot be loaded: No such file"),
        ("adapter_config.json", b"{", "the adapter cannot be loaded"),
        ("adapter_config.json", None, "the adapter cannot be loaded: Can't find 'adapter_config.json'"),
    ],
)
def test_M11_a_broken_adapter(tiny: Tiny, tmp_path: Path, name: str, content: bytes | None, told: str) -> None:
    recipe = make_recipe(tiny, server__tune="lora")
    folder = save_server(build_server(recipe, str), recipe, Identity("ab", 1), tmp_path)
    path = folder / "adapter" / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ModelError, match=rf"step-000001.adapter: .*{told}") as caught:
        load_server(folder, str)
    assert "\n" not in str(caught.value)


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a shard is missing": (lambda f: _sharded(f)[1].unlink(), "model-00002-of"),
    "a shard is cut off": (
        lambda f: (s := _sharded(f)[1]).write_bytes(s.read_bytes()[:-9]),
        "00002-of.* cut off",
    ),
    "a pointer": (
        lambda f: (f / "model.safetensors").write_text("version https://git-lfs"),
        "cannot be loaded: it is cut off, or was never fetched",
    ),
    "an index that is a list": (
        lambda f: (_sharded(f), (f / "model.safetensors.index.json").write_text("[]")),
        "cannot be loaded: list",
    ),
    "an empty pickle": (
        lambda f: ((f / "model.safetensors").unlink(), (f / "pytorch_model.bin").write_bytes(b"")),
        "EOFError",
    ),
    "a width that is text": (lambda f: _settings(f, hidden_size="abc"), "'hidden_size'.*expected int"),
    "no heads": (lambda f: _settings(f, num_attention_heads=0), "modulo by zero"),
    "padding beyond the vocabulary": (lambda f: _settings(f, pad_token_id=1000), "Padding_idx"),
    "an activation that is none": (lambda f: _settings(f, hidden_act="nope"), "KeyError: 'nope'"),
    "another vocabulary": (lambda f: _settings(f, vocab_size=10), r"lm_head.weight is \[16, 32\] and not \[10, 32\]"),
    "stop tokens that are text": (lambda f: _settings(f, "generation_config.json", eos_token_id="x"), "eos_token_id"),
    "stop tokens in two lists": (lambda f: _settings(f, "generation_config.json", eos_token_id=[[1]]), "eos_token_id"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_M11_M17_a_broken_checkpoint_is_refused_in_one_line(tmp_path: Path, how: str) -> None:
    breaks, told = BROKEN[how]
    folder = Path(saved(tmp_path, "LlamaConfig"))
    breaks(folder)
    with pytest.raises(ModelError, match=f"server.checkpoint.*{told}") as caught:
        load_language_half(config.Server(str(folder), "full"))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_M17_code_of_a_checkpoint_is_not_run_and_nobody_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question at the terminal"))
    folder = Path(saved(tmp_path, "LlamaConfig"))
    _settings(folder, model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})
    with pytest.raises(ModelError, match="custom code"):
        load_language_half(config.Server(str(folder), "full"))
    with pytest.raises(ModelError, match="custom code"):
        load_vision_half(config.Client(str(folder)), 32)
