"""A causal language model, whole or its token embedding alone, from a checkpoint of transformers.

Shapes: V vocabulary, D language width.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, LlavaForConditionalGeneration

from bitseam.errors import ModelError, first_sentence
from bitseam.models.weights import Loaded, errors_of, load_float32, require_readable, some

log = logging.getLogger(__name__)


class LlavaLanguage(LlavaForConditionalGeneration):
    """Loads only the language half of a LLaVA; see `bitseam.models.vision.half.LlavaVision`."""

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"vision_tower", r"multi_modal_projector"]

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.model.vision_tower = nn.Identity()
        self.model.multi_modal_projector = nn.Identity()


def load_language(checkpoint: str) -> Any:
    """A causal language model, or that of a LLaVA, in float32.

    Raises ModelError where it cannot be loaded whole, or is no causal language model.
    """
    where = f"server.checkpoint {checkpoint!r}"
    with errors_of(where):
        cfg = _causal_config(checkpoint)
        if cfg.model_type == "llava":
            loaded = _from_llava(checkpoint)
        else:
            loaded = load_float32(AutoModelForCausalLM, checkpoint)
        _require_whole(loaded)
    if loaded.unexpected:
        names = some(loaded.unexpected)
        log.warning("%s: %d tensors of its files have no place in it: %s", where, len(loaded.unexpected), names)
    language = loaded.model
    language.config.return_dict = True  # a checkpoint may ask for tuples
    # In evaluation RWKV divides weights in place, against overflow in half precision, and would be saved so.
    if getattr(language.config, "rescale_every", 0):
        language.config.rescale_every = 0
    return language


def embedding_width(checkpoint: str) -> int:
    """D of a causal language model, or of that of a LLaVA, by its configuration: no weights are read.

    Raises ModelError where it is no causal language model, or its configuration cannot be read.
    """
    with errors_of(f"server.checkpoint {checkpoint!r}"), torch.device("meta"):
        language = AutoModelForCausalLM.from_config(_causal_config(checkpoint).get_text_config())
        return int(language.get_input_embeddings().weight.shape[1])


def load_token_embedding(checkpoint: str) -> nn.Module:
    """The module that a language model looks its tokens up with, (N,) ids -> (N, D), frozen, in float32; of all the
    model's weights only this one is read. Raises ModelError where the checkpoint has it not."""
    where = f"server.checkpoint {checkpoint!r}"
    try:
        cfg = _causal_config(checkpoint)
        with init_empty_weights(include_buffers=False):
            language = AutoModelForCausalLM.from_config(cfg.get_text_config())
        module = language.get_input_embeddings()
        tied = {name for name, one in language.named_parameters(remove_duplicate=False) if one is module.weight}
        tied |= {one for pair in language.all_tied_weights_keys.items() if tied & {*pair} for one in pair}
        first = [name for name, one in language.named_modules() if one is module]
        names = [f"{first[0]}.weight", *sorted(tied - {f"{first[0]}.weight"})]
        require_readable(checkpoint)
        weight = _one_tensor(Path(checkpoint), names, tuple(module.weight.shape))
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from error
    except Exception as error:  # as in `errors_of`
        raise ModelError(f"{where}: its token embedding cannot be loaded: {first_sentence(error)}") from error
    module.weight = nn.Parameter(weight.float(), requires_grad=False)
    if others := [name for name, one in module.named_parameters() if one.is_meta]:
        raise ModelError(f"{where}: the token embedding has more weights than a table ({', '.join(others)})")
    return module.requires_grad_(False)


def _require_whole(loaded: Loaded) -> None:
    if loaded.missing:
        raise ModelError(
            f"{len(loaded.missing)} tensors of the model are not in its files ({some(loaded.missing)}): the files are "
            "incomplete, or of another kind of model"
        )


def _causal_config(checkpoint: str) -> Any:
    cfg = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    if cfg.model_type == "llava":
        return cfg
    advice = "give a causal language model, or a LLaVA of model_type llava"
    if type(cfg) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(f"it is a {cfg.model_type}, which transformers has no causal language model of: {advice}")
    if getattr(cfg, "is_encoder_decoder", False):
        raise ModelError(f"it is an encoder-decoder ({cfg.model_type}), whose answers need its encoder: {advice}")
    if "text_config" in MODEL_FOR_CAUSAL_LM_MAPPING[type(cfg)].config_class.sub_configs:
        raise ModelError(f"it is a whole {cfg.model_type}, with its way for images: {advice}")
    return cfg


def _from_llava(checkpoint: str) -> Loaded:
    loaded = load_float32(LlavaLanguage, checkpoint, key_mapping={r"^language_model\.lm_head": "lm_head"})
    llava = loaded.model
    with torch.device("meta"):  # a shell to put the loaded parts in
        language = AutoModelForCausalLM.from_config(llava.config.text_config)
    setattr(language, language.base_model_prefix, llava.model.language_model)
    language.set_output_embeddings(llava.lm_head)
    language.generation_config = llava.generation_config
    return replace(loaded, model=language)


def _one_tensor(folder: Path, names: list[str], shape: tuple[int, ...]) -> Tensor:
    """The tensor of that shape whose key in a folder's files is most alike to the first of `names` that has one.

    Checkpoints of other times and of wholes that the model is part of put other prefixes before a name.
    """
    shapes = {key: (path, found) for path, key, found in _tensors(folder)}
    for name in names:
        alike = {key: _common_parts(key, name) for key, (_, found) in shapes.items() if found == shape}
        most = max(alike.values(), default=0)
        keys = [key for key, common in alike.items() if common == most]
        if most >= min(2, len(name.split("."))) and len(keys) == 1:
            with safe_open(shapes[keys[0]][0], "pt") as file:
                return file.get_tensor(keys[0])
    raise ModelError(f"no {names[0]} of shape {shape} in its safetensors files; [streams.text] needs it")


def _tensors(folder: Path) -> Iterator[tuple[Path, str, tuple[int, ...]]]:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118  (not a dict)
                yield path, key, tuple(file.get_slice(key).get_shape())


def _common_parts(one: str, other: str) -> int:
    """How many of their last parts, between dots, two names share."""
    count = 0
    for left, right in zip(reversed(one.split(".")), reversed(other.split(".")), strict=False):
        if left != right:
            break
        count += 1
    return count
