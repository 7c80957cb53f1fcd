"""Tiny checkpoints, saved and loaded through the real Hugging Face code, and recipes around them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Generator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from bitseam import config

WORDS = [
    "<unk>",
    "<s>",
    "</s>",
    "<image>",
    *["what", "is", "this", "there", "a", "cat", "dog", "?", "yes", "no", "red", "blue"],
]
WIDTH = 32


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What tests of hostile text have logged may be no UTF-8, and a worker that cannot send its report is lost."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


@dataclass(frozen=True)
class Tiny:
    vision: str
    language: str
    llava: str
    tokenizer: str


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, empty."""
    monkeypatch.setenv("BITSEAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def make_tiny(folder: Path) -> Tiny:
    """Checkpoints of a few thousand random weights below `folder`."""
    torch.manual_seed(0)
    vision = Dinov2Config(hidden_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=56, patch_size=14)
    Dinov2Model(vision).save_pretrained(folder / "vision")
    square = {"height": 56, "width": 56}
    BitImageProcessorPil(size={"shortest_edge": 56}, crop_size=square).save_pretrained(folder / "vision")
    text = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=len(WORDS),
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(text).save_pretrained(folder / "language")
    clip = CLIPVisionConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14
    )
    llava = LlavaConfig(vision_config=clip, text_config=text, image_token_index=WORDS.index("<image>"))
    LlavaForConditionalGeneration(llava).save_pretrained(folder / "llava")
    side = {"height": 28, "width": 28}
    CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=side).save_pretrained(folder / "llava")
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    for name in ("tokenizer", "language", "llava"):
        tokenizer.save_pretrained(folder / name)
    return Tiny(*(str(folder / name) for name in ("vision", "language", "llava", "tokenizer")))


def make_recipe(tiny: Tiny, **changes: Any) -> config.Recipe:
    """A recipe on the tiny checkpoints; `changes` maps dotted keys with `__` for the dots."""
    raw: dict[str, Any] = {
        "name": "tiny",
        "client": {"checkpoint": tiny.vision, "image_size": 56, "merge": 2, "hidden_layer": -2},
        "server": {"checkpoint": tiny.language, "tune": "full"},
        "seam": {"width": WIDTH},
        "text": {"tokenizer": tiny.tokenizer, "prompt": "what {image} {question}", "max_tokens": 32},
        "data": {"train": "train.jsonl"},
        "train": {"steps": 4, "batch": 2, "checkpoint_every": 2},
        "network": {"certificates": ""},
        "device": "cpu",
    }
    for key, value in changes.items():
        table = raw
        *path, last = key.split("__")
        for name in path:
            table = table.setdefault(name, {})
        table[last] = deepcopy(value)
    return config.parse_recipe(raw, "test")


def load_benchmark(name: str) -> ModuleType:
    """benchmarks/NAME.py as a module, also where the standard library has one of that name."""
    folder = Path(__file__).parent.parent / "benchmarks"
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
