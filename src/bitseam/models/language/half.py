"""The server half of a vision-language model: the language model. Knows nothing of images.

Shapes: B sequences, S columns, D language width, V vocabulary, A answer tokens in the batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.masking_utils import chunked_overlay, sliding_window_overlay
from transformers.pytorch_utils import Conv1D

from bitseam import config
from bitseam.errors import ModelError, first_sentence
from bitseam.models.language.loading import load_language

Overlay = Callable[[Any, Any, Tensor, Tensor], Tensor]  # batch, head, positions that look, that are seen -> bool


class LanguageHalf(nn.Module):
    """A causal language model that takes embeddings and gives logits where they are needed.

    stops: tokens that end an answer, by the model's own settings.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.stops = _stop_tokens(self.base)

    @property
    def base(self) -> Any:
        """The model itself, where adapters are wrapped around it."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def width(self) -> int:
        return self.model.get_input_embeddings().weight.shape[1]

    @property
    def vocabulary(self) -> int:
        return self.model.get_input_embeddings().weight.shape[0]

    def embed(self, ids: Tensor) -> Tensor:
        """(N,) token ids -> (N, D)."""
        return self.model.get_input_embeddings()(ids)

    def require_plain_loss(self) -> None:
        """Raise ModelError where the model's own loss is more than the cross-entropy of each next token."""
        if getattr(self.base.config, "output_router_logits", False):
            raise ModelError(
                "server.checkpoint: output_router_logits is true: its own loss adds one of the router, which depends "
                "on the whole batch; set it to false in the checkpoint's config.json to train"
            )

    def windows(self, longest: int) -> dict[str, Overlay | None]:
        """What layers of each kind see of a row of `longest` positions beside the causal mask: None for all of it.

        The kinds are those of transformers' `layer_types`; "" where the model has one for all layers.
        """
        cfg = self.base.config.get_text_config()
        window, chunk = getattr(cfg, "sliding_window", None), getattr(cfg, "attention_chunk_size", None)
        sliding = sliding_window_overlay(window) if window and window < longest else None
        chunked = chunked_overlay(chunk, torch.zeros(1, dtype=torch.int64)) if chunk and chunk < longest else None
        kinds = getattr(cfg, "layer_types", None)
        if not kinds:
            return {"": sliding or chunked}
        seen = {"sliding_attention": sliding, "chunked_attention": chunked}
        return {kind: seen.get(kind) for kind in kinds}

    def logits(
        self,
        embeds: Tensor,
        places: Tensor,
        mask: Tensor | Mapping[str, Tensor | None] | None = None,
        position: Tensor | None = None,
        everywhere: bool = False,
    ) -> Tensor:
        """(B, S, D) embeddings -> (A, V) logits, in float32, of the states at rows and columns `places` (2, A).

        mask: (B, 1, S, S), added to the attention's scores, or one for each kind of layers, where the model's own
        causal mask is not enough; position: (B, S), where its own positions are not right. everywhere: have the model
        compute all logits, and take those of `places` from them.

        The model's own forward is called, so that whatever it does before and after its head is done here too.
        """
        given = {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": position}
        if everywhere:
            return self.run(**given).logits[tuple(places)].float()
        with _kept(self.model.get_output_embeddings(), places):
            return self.run(**given).logits[0].float()

    def run(self, **given: Any) -> Any:
        """The model's own forward, without a cache, given what is not None and it can take."""
        takes = inspect.signature(self.base.forward).parameters
        given = {name: value for name, value in {**given, "use_cache": False}.items() if value is not None}
        return self.base(**{name: value for name, value in given.items() if name in takes})  # adapters lie inside

    @torch.no_grad()
    def generate(
        self, embeds: Tensor, mask: Tensor, longest: int, stops: Collection[int], end: int, streamer: Any = None
    ) -> Tensor:
        """Greedy decoding of left-padded (B, S, D) embeddings -> (B, new tokens), each up to one of `stops`, for which
        `end` is put, and which follows it up to the longest; a streamer sees (B,) at a time."""
        settings = GenerationConfig(
            max_new_tokens=longest, do_sample=False, num_beams=1, eos_token_id=sorted(stops) or None, pad_token_id=end
        )
        with plain_settings(self.base):
            tokens = self.base.generate(
                inputs_embeds=embeds,
                attention_mask=mask,
                generation_config=settings,
                streamer=None if streamer is None else _Ends(streamer, stops, end),
            )
        return _ended(tokens, stops, end)

    @torch.no_grad()
    def generate_without_cache(
        self, embeds: Tensor, longest: int, stops: Collection[int], end: int, streamer: Any = None
    ) -> Tensor:
        """As `generate`, of one sequence (1, S, D), by a whole forward pass for each token."""
        told = _Ends(streamer, stops, end) if streamer is not None else None
        tokens: list[Tensor] = []
        while len(tokens) < longest and not (tokens and int(tokens[-1]) in stops):
            last = torch.tensor([[0], [embeds.shape[1] - 1]], device=embeds.device)
            tokens.append(self.logits(embeds.clone(), last).argmax(-1))  # CTRL scales in place
            embeds = torch.cat([embeds, self.embed(tokens[-1])[None]], 1)
            if told is not None:
                told.put(tokens[-1])
        if told is not None:
            told.end()
        return _ended(torch.cat(tokens)[None], stops, end)


def load_language_half(settings: config.Server) -> LanguageHalf:
    """Build the server half from a causal language model or a LLaVA, tuned as the recipe says.

    Raises ModelError where the checkpoint cannot be loaded.
    """
    language = load_language(settings.checkpoint)
    language.requires_grad_(settings.tune == "full")
    if settings.tune == "lora":
        language = add_lora(language, settings.lora)
    return LanguageHalf(language)


def add_lora(language: Any, lora: config.Lora) -> Any:
    """Wrap with peft adapters, trainable, the rest frozen. Raises ModelError for a target that nothing matches."""
    from peft import LoraConfig, get_peft_model  # slow to import, and needed here alone

    layers, stacks = _adaptable(language)
    if lora.targets == "all-linear":
        ends = {name for name, layer in layers.items() if isinstance(layer, nn.Embedding)}
        ends |= {name for name, layer in layers.items() if layer is language.get_output_embeddings()}
        chosen = [*(name for name in layers if name not in ends), *stacks]
    else:
        found = {t: [name for name in (*layers, *stacks) if f".{name}".endswith(f".{t}")] for t in lora.targets}
        if idle := [t for t, names in found.items() if not names]:
            there = sorted({name.rpartition(".")[2] for name in (*layers, *stacks)})
            raise ModelError(
                f"server.lora.targets: no layer of the model is named {', '.join(idle)}; its linear layers are "
                f"{', '.join(there)}"
            )
        chosen = sorted({name for names in found.values() for name in names})
    if lora.dropout and (stacked := [name for name in chosen if name in stacks]):
        raise ModelError(
            f"server.lora.dropout is {lora.dropout}, and adapters of stacked experts ({stacked[0]}) cannot drop: set "
            "it to 0, or name other layers in server.lora.targets"
        )
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=[name for name in chosen if name in layers],
        target_parameters=[name for name in chosen if name in stacks] or None,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(language, settings)
    except ValueError as error:
        raise ModelError(f"server.lora.targets: {first_sentence(error)}") from error


def _adaptable(language: Any) -> tuple[dict[str, nn.Module], list[str]]:
    """Layers and, of mixtures of experts, stacks of matrices that an adapter can be put on, by name."""
    layers: dict[str, nn.Module] = {}
    stacks: list[str] = []
    past: set[str] = set()
    for name, module in language.named_modules():
        if hasattr(module, "A_log"):  # state-space layers take these weights past an adapter
            past |= {f"{name}.{part}" for part in ("out_proj", "dt_proj")}
        plain = isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward  # routers give more
        if plain or isinstance(module, Conv1D | nn.Embedding):
            layers[name] = module
        elif "expert" in f"{name}.{type(module).__name__}".lower():
            own = module.named_parameters(prefix=name, recurse=False)
            stacks += [path for path, weight in own if weight.ndim == 3]
    return {name: layer for name, layer in layers.items() if name not in past}, stacks


@contextmanager
def plain_settings(model: Any) -> Iterator[None]:
    """While this lasts, a model has no settings of its own for `generate`, which would fill in what is not asked for:
    beams, penalties, a least length."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


@contextmanager
def _kept(head: nn.Module | None, places: Tensor) -> Iterator[None]:
    """While this lasts, the head is given the states at `places` alone, as one row (1, A, D).

    transformers' `logits_to_keep` keeps the same columns of each row. Answers stand elsewhere in each packed row, and
    for the union of their columns the head would compute several times as much.
    """
    if head is None:
        raise ModelError("the language model has no head (output embeddings)")
    handle = head.register_forward_pre_hook(lambda _, given: (given[0][tuple(places)][None], *given[1:]))
    try:
        yield
    finally:
        handle.remove()


def _stop_tokens(model: Any) -> frozenset[int]:
    stops: set[int] = set()
    for settings in (model.generation_config, model.config, model.config.get_text_config()):
        told = getattr(settings, "eos_token_id", None)
        ids = told if isinstance(told, list) else [] if told is None else [told]
        if any(type(token) is not int for token in ids):
            raise ModelError(f"server.checkpoint: eos_token_id is {told!r:.80}: give a token's id, or a list of them")
        stops.update(ids)
    return frozenset(stops)


def _ended(tokens: Tensor, stops: Collection[int], end: int) -> Tensor:
    return torch.where(torch.isin(tokens, tokens.new_tensor(sorted(stops))), end, tokens)


class _Ends:
    """Between a model that generates and a streamer, which is told `end` for every stop token."""

    def __init__(self, streamer: Any, stops: Collection[int], end: int) -> None:
        self._streamer, self._stops, self._end = streamer, stops, end

    def put(self, value: Tensor) -> None:
        self._streamer.put(_ended(value, self._stops, self._end))

    def end(self) -> None:
        self._streamer.end()
