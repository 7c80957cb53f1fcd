"""Adapters go where they are asked to, learn there, and merge into what they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Tiny
from small_models import saved

from bitseam import config
from bitseam.errors import ModelError
from bitseam.models.language.half import load_language_half

SMALL_EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "state_size": 8}

ADAPTED = {  # layers that get adapters by default
    "LlamaConfig": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "Phi3Config": {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"},
    "PhiConfig": {"q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"},
    "OPTConfig": {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"},
    "GPT2Config": {"c_attn", "c_proj", "c_fc"},
    "BloomConfig": {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
}


@pytest.mark.parametrize("kind", ADAPTED)
def test_M10_default_targets_are_all_linear_layers_but_the_head(tmp_path: Path, kind: str) -> None:
    folder = saved(tmp_path, kind, ffn_dim=48, word_embed_proj_dim=32)
    half = load_language_half(config.Server(folder, "lora"))
    adapted = {
        name.split(".lora_A")[0].rpartition(".")[2] for name, _ in half.model.named_parameters() if "lora_A" in name
    }
    assert adapted == ADAPTED[kind]
    trained = {name for name, parameter in half.model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)


@pytest.mark.parametrize("kind", ["MambaConfig", "Mamba2Config"])
def test_M10_default_targets_fit_models_without_attention(tmp_path: Path, kind: str) -> None:
    folder = saved(tmp_path, kind, state_size=8, num_heads=8, head_dim=8, n_groups=1)
    half = load_language_half(config.Server(folder, "lora"))
    assert any("lora_A" in name for name, _ in half.model.named_parameters())


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        (("q_proj", "v_porj"), r"no layer of the model is named v_porj; its linear layers are .*q_proj"),
        (("roj",), "named roj"),
        (("q_proj", "layers.9.mlp.up_proj", "x"), "named layers.9.mlp.up_proj, x"),
        (("self_attn",), "named self_attn; its linear layers are .*q_proj"),
        (("q_proj", "act_fn", "input_layernorm"), "named act_fn, input_layernorm"),
    ],
)
def test_M10_every_target_must_match(tiny: Tiny, targets: tuple[str, ...], told: str) -> None:
    with pytest.raises(ModelError, match=told):
        load_language_half(config.Server(tiny.language, "lora", config.Lora(targets=targets)))


LISTED = {
    "GPT2Config": (("c_atn",), "c_atn; .*c_attn, c_fc"),
    "MambaConfig": (("in_proj", "out_proj"), "out_proj; .*in_proj"),
    "MixtralConfig": (("w1", "w3"), "w1, w3; .*gate_up_proj"),
}


@pytest.mark.parametrize("kind", LISTED)
def test_M10_what_could_be_meant_is_listed(tmp_path: Path, kind: str) -> None:
    targets, told = LISTED[kind]
    folder = saved(tmp_path, kind, **SMALL_EXPERTS)
    with pytest.raises(ModelError, match=f"no layer of the model is named {told}") as caught:
        load_language_half(config.Server(folder, "lora", config.Lora(targets=targets)))
    assert "\n" not in str(caught.value)


def test_M10_targets_that_match_are_taken(tiny: Tiny) -> None:
    half = load_language_half(config.Server(tiny.language, "lora", config.Lora(targets=("q_proj", "1.mlp.up_proj"))))
    adapted = [name for name, _ in half.model.named_parameters() if "lora_A" in name]
    assert len(adapted) == 2 + 1


# Layers whose weights are used past an adapter, routers that give more than a matrix, a forward pass that peft does not
# call with embeddings, and experts in stacks.
AWKWARD: dict[str, dict[str, Any]] = {
    "MambaConfig": {},
    "JambaConfig": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "Llama4TextConfig": {"head_dim": 8, "interleave_moe_layer_step": 1, "intermediate_size_mlp": 48},
    "PhimoeConfig": {},
    "MptConfig": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64, "expansion_ratio": 2},
    "MixtralConfig": {},
    "GptOssConfig": {"head_dim": 8},
    "GraniteMoeConfig": {},
}


@pytest.mark.parametrize("kind", AWKWARD)
def test_M10_every_adapter_learns_and_a_merge_says_the_same(tmp_path: Path, kind: str) -> None:
    folder = saved(tmp_path / "whole", kind, **{**SMALL_EXPERTS, **AWKWARD[kind]})
    half = load_language_half(config.Server(folder, "lora"))
    adapters = {name: p for name, p in half.model.named_parameters() if "lora_B" in name}
    generator = torch.Generator().manual_seed(0)
    for weight in adapters.values():
        weight.data.normal_(0, 0.05, generator=generator)
    embeds = torch.randn(4, 12, 32, generator=generator)
    logits = half.run(inputs_embeds=embeds).logits
    logits.square().sum().backward()
    assert not [name for name, p in adapters.items() if p.grad is None or not p.grad.any()]
    stacks = [name for name, p in half.base.named_parameters() if p.ndim == 3 and "expert" in name]
    assert sum("experts" in name or "linear.lora" in name for name in adapters) >= len(stacks)
    half.model = half.model.merge_and_unload()
    torch.testing.assert_close(half.run(inputs_embeds=embeds).logits, logits, rtol=1e-4, atol=1e-5)


def test_M10_stacked_experts_do_not_drop(tmp_path: Path) -> None:
    folder = saved(tmp_path, "MixtralConfig", **SMALL_EXPERTS)
    with pytest.raises(ModelError, match=r"server.lora.dropout is 0.1.* set it to 0"):
        load_language_half(config.Server(folder, "lora", config.Lora(dropout=0.1)))
    load_language_half(config.Server(folder, "lora", config.Lora(dropout=0.1, targets=("q_proj", "v_proj"))))
    half = load_language_half(config.Server(folder, "lora", config.Lora(targets=("experts.down_proj",))))
    assert sum("lora_A" in name for name, _ in half.model.named_parameters()) == 2
