"""Two halves joined into one ordinary transformers model, quantizers included: its answers are those of the split.

    model = BitseamModel.from_pretrained("merged")
    model.answer(image, "What is in the picture?")

Shapes: B sequences, S padded length, M image tokens, V vocabulary.
"""

from __future__ import annotations

import tempfile
from copy import deepcopy
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutput

from bitseam import config
from bitseam.errors import ModelError
from bitseam.models.client import ClientModel
from bitseam.models.language.half import LanguageHalf
from bitseam.models.server import ServerModel, Ways
from bitseam.models.vision.half import half_from_llava, half_from_tower
from bitseam.models.vision.llava import LlavaTower, LlavaVision
from bitseam.runs.checkpoint import Locate, load_pair
from bitseam.runs.folders import writable
from bitseam.text.batch import TextBatch
from bitseam.text.prompts import Prompter


class BitseamConfig(PreTrainedConfig):
    """recipe: as `asdict(Recipe)`; vision, language: transformers configurations as dictionaries; tower: its facts;
    ways: as `asdict(Ways)`, how the language model is run; generation: its own settings."""

    model_type = "bitseam"

    def __init__(
        self,
        recipe: Any = None,
        vision: Any = None,
        language: Any = None,
        tower: Any = None,
        ways: Any = None,
        generation: Any = None,
        **kwargs: Any,
    ) -> None:
        kwargs.pop("tie_word_embeddings", None)  # the language model's word counts
        self.recipe, self.vision, self.language = recipe or {}, vision or {}, language or {}
        self.tower, self.ways, self.generation = tower or {}, ways or {}, generation or {}
        super().__init__(tie_word_embeddings=bool(self.language.get("tie_word_embeddings")), **kwargs)


class BitseamModel(PreTrainedModel):
    """Both halves in one process."""

    config_class = BitseamConfig

    def __init__(self, cfg: BitseamConfig) -> None:
        super().__init__(cfg)
        recipe = config.parse_recipe(cfg.recipe, "config.json")
        folder = cfg.name_or_path
        processor = AutoImageProcessor.from_pretrained(folder) if folder else None
        vision, language = (_config(part) for part in (cfg.vision, cfg.language))
        if vision.model_type == "llava":
            half = half_from_llava(LlavaVision(vision), processor, cfg.tower)
        else:
            tower = AutoModel.from_config(vision)
            half = half_from_tower(tower, recipe.client, recipe.seam.width, processor, cfg.tower)
        whole = AutoModelForCausalLM.from_config(language)
        whole.generation_config = GenerationConfig.from_dict(cfg.generation)
        server = LanguageHalf(whole)
        embedding = deepcopy(whole.get_input_embeddings()) if "text" in recipe.streams else None
        self.client = ClientModel(half, recipe, embedding)
        self.server = ServerModel(server, recipe)
        self.server.ways = Ways(**cfg.ways)
        self.recipe = recipe
        # transformers ties the weights of direct children alone; the language model lies deeper.
        deeper, tied = "server.language.model.", server.model.all_tied_weights_keys
        self._tied_weights_keys = {deeper + one: deeper + other for one, other in tied.items()}
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """Weights come from the halves; there is nothing to initialise."""

    def forward(self, pixel_values: Tensor, text: TextBatch) -> CausalLMOutput:
        """Pixels of images, (B k^2, 3, S, S) as `client.vision.pixels` makes them, and a ragged batch -> loss, a mean
        over answer tokens, and their logits (A, V)."""
        logits, ids = self.server.answer_logits(text, self._levels(self.client.vision.features(pixel_values), text))
        return CausalLMOutput(loss=cross_entropy(logits, ids), logits=logits)

    @cached_property
    def _prompter(self) -> Prompter:
        return Prompter(replace(self.recipe.text, tokenizer=self.config.name_or_path))

    @torch.no_grad()
    def answer(self, image: Image.Image, question: str, max_new_tokens: int = 64) -> str:
        """One question about one image, greedily."""
        prompter = self._prompter
        text = prompter.batch([question])
        vision = self.client.vision
        levels = self._levels(vision.features(vision.pixels([image]).to(self.device)), text)
        tokens = self.server.generate(text, levels, max_new_tokens, prompter.end)
        return prompter.decode(tokens[0].tolist())

    def _levels(self, features: Tensor, text: TextBatch) -> dict[str, Tensor]:
        """What would have crossed."""
        self.client.use_asked()
        return {name: quantized.levels for name, quantized in self.client(features, text).items()}


AutoConfig.register("bitseam", BitseamConfig)
AutoModel.register(BitseamConfig, BitseamModel)


def merge(client: Path, server: Path, out: Path, locate: Locate) -> None:
    """Write the joined model to `out`, all of it or nothing.

    Raises ModelError where the halves are not of one run and step, and ConfigError where `out` cannot be written, which
    is tried before anything is loaded.
    """
    writable(out)
    client_model, server_model, recipe, _ = load_pair(client, server, locate)
    language = server_model.language.model
    if recipe.server.tune == "lora":
        _untie(server_model.language.base)
        server_model.language.model = language = language.merge_and_unload()
    tower = client_model.vision.tower
    vision: Any = tower.llava if isinstance(tower, LlavaTower) else tower.model
    parts = {
        "vision": vision.config.to_dict(),
        "language": language.config.to_dict(),
        "tower": client_model.vision.facts,
        "ways": asdict(server_model.ways),
        "generation": language.generation_config.to_dict(),
    }
    with torch.device("meta"):
        whole = BitseamModel(BitseamConfig(recipe=asdict(recipe), **parts))
    whole.client, whole.server = client_model, server_model
    try:
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=out) as new:
            whole.save_pretrained(new)
            client_model.vision.processor.save_pretrained(new)
            Prompter(recipe.text, locate).tokenizer.save_pretrained(new)
            for path in Path(new).iterdir():
                path.replace(out / path.name)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{out}: the merged model could not be written: {error}") from error


def _untie(language: Any) -> None:
    """Where an adapter lies on one of the token embedding and the head, they are alike no more once it is merged."""
    first, last = language.get_input_embeddings(), language.get_output_embeddings()
    if first.weight is last.weight and (hasattr(first, "base_layer") or hasattr(last, "base_layer")):
        head = getattr(last, "base_layer", last)
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        language.config.tie_word_embeddings = False


def _config(plain: dict[str, Any]) -> Any:
    return AutoConfig.for_model(**plain)
