"""The server half of a vision-language model: the language model. Knows nothing of images.

Shapes: B sequences, S padded length, D language width, V vocabulary, A answer tokens in the batch.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlavaForConditionalGeneration

from bitseam import config
from bitseam.errors import ModelError


class LlavaLanguage(LlavaForConditionalGeneration):
    """Loads only the language half of a LLaVA; see `bitseam.halves.client.LlavaVision`."""

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"vision_tower", r"multi_modal_projector"]

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.model.vision_tower = nn.Identity()
        self.model.multi_modal_projector = nn.Identity()


class ServerHalf(nn.Module):
    """A causal language model that takes embeddings and gives logits where they are needed."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    @property
    def width(self) -> int:
        return self.model.get_input_embeddings().weight.shape[1]

    @property
    def vocabulary(self) -> int:
        return self.model.get_input_embeddings().weight.shape[0]

    def embed(self, ids: Tensor) -> Tensor:
        """(N,) token ids -> (N, D)."""
        return self.model.get_input_embeddings()(ids)

    def hidden(self, embeds: Tensor, mask: Tensor | None = None, position: Tensor | None = None) -> Tensor:
        """(B, S, D) embeddings -> (B, S, D) last hidden states.

        mask: (B, 1, S, S), added to the attention's scores, where the causal mask is not enough; position: (B, S).
        """
        decoder = self.model.get_decoder()
        out = decoder(inputs_embeds=embeds, attention_mask=mask, position_ids=position, use_cache=False)
        return out.last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """(A, D) -> (A, V), in float32."""
        return self.model.get_output_embeddings()(hidden).float()

    @torch.no_grad()
    def generate(self, embeds: Tensor, mask: Tensor, max_new_tokens: int, end: int, streamer: Any = None) -> Tensor:
        """Greedy decoding of left-padded (B, S, D) embeddings -> (B, new tokens); a streamer sees (B,) at a time."""
        return self.model.generate(
            inputs_embeds=embeds,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=end,
            streamer=streamer,
        )


def load_server_half(settings: config.Server) -> ServerHalf:
    """Build the server half from a causal language model or a LLaVA, tuned as the recipe says.

    Raises ModelError where the checkpoint cannot be loaded.
    """
    try:
        cfg = AutoConfig.from_pretrained(settings.checkpoint)
        if cfg.model_type == "llava":
            language = _from_llava(settings.checkpoint)
        else:
            language = AutoModelForCausalLM.from_pretrained(settings.checkpoint, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"server.checkpoint {settings.checkpoint!r} cannot be loaded: {error}") from error
    language.requires_grad_(settings.tune == "full")
    if settings.tune == "lora":
        language = add_lora(language, settings.lora)
    return ServerHalf(language)


def add_lora(language: Any, lora: config.Lora) -> Any:
    """Wrap with peft adapters, trainable, the rest frozen."""
    from peft import LoraConfig, get_peft_model  # slow to import, and needed here alone

    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(language, settings)
    except ValueError as error:
        raise ModelError(f"server.lora.targets: {error}") from error


def _from_llava(checkpoint: str) -> Any:
    llava = LlavaLanguage.from_pretrained(
        checkpoint, dtype=torch.float32, key_mapping={r"^language_model\.lm_head": "lm_head"}
    )
    with torch.device("meta"):  # a shell to put the loaded parts in
        language = AutoModelForCausalLM.from_config(llava.config.text_config)
    setattr(language, language.base_model_prefix, llava.model.language_model)
    language.set_output_embeddings(llava.lm_head)
    return language
