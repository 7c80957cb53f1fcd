"""What codecs are compared on: the features, gradients and losses of a trained pair of halves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bitseam.api.recipes import locate
from bitseam.data.features import LiveFeatures
from bitseam.data.rows import Row, read_rows
from bitseam.errors import ModelError
from bitseam.evals.planning import FrozenPair, UpPlanner, tokens
from bitseam.models.server import ServerModel
from bitseam.quant import ChannelStatistics
from bitseam.runs.checkpoint import load_pair
from bitseam.text.batch import TextBatch
from bitseam.text.prompts import Prompter

CALIBRATION, QUESTIONS, MESSAGE = 256, 2048, 10  # images, questions, images

Tensors = list[Tensor]  # messages (I, M, D)


@dataclass(frozen=True)
class Sample:
    """Features of other images to calibrate on (N, D), and to plan by; features and questions of each message; a frozen
    half."""

    calibration: Tensor
    planner: UpPlanner
    features: Tensors
    texts: list[TextBatch]
    language: ServerModel

    @torch.no_grad()
    def loss(self, features: Tensors) -> Tensor:
        """Cross-entropy of the answers about each image (I,), nats, times I / tokens: its mean is that of a token."""
        sums, count = [], 0
        for text, x in zip(self.texts, features, strict=True):
            losses = F.cross_entropy(*self.language.answer_logits(text, {"image": x}), reduction="none")
            image = torch.repeat_interleave(text.image, text.lengths)[text.answers]
            sums.append(torch.zeros(len(x)).index_add(0, image, losses))
            count += len(losses)
        return torch.cat(sums) * sum(map(len, sums)) / count

    def gradients(self) -> Tensors:
        """Of the loss of each message, summed over answer tokens: what the server sends."""
        leaves = [x.clone().requires_grad_() for x in self.features]
        pairs = zip(self.texts, leaves, strict=True)
        return [torch.autograd.grad(self.language.loss(text, {"image": x}), x)[0] for text, x in pairs]


def load(client: Path, server: Path, questions: Path | None) -> tuple[Sample, dict[str, Any]]:
    """Halves from two checkpoints, and how much there is of what. questions: the recipe's test file by default.

    Raises ModelError for halves of different runs, or trained with a quantizer.
    """
    model, language, recipe, identity = load_pair(client, server, locate)
    if recipe.streams["image"].quantizer != "none":
        raise ModelError(f"{client} and {server}: not the halves of a run without a quantizer")
    by_image: dict[Path, list[Row]] = {}
    for row in read_rows(questions or recipe.data.test):
        by_image.setdefault(row.image, []).append(row)
    groups = [list(by_image.values())[i] for i in np.random.default_rng(0).permutation(len(by_image))]
    known, rest = groups[:CALIBRATION], groups[CALIBRATION:]
    tested = rest[: int(np.searchsorted(np.cumsum([len(group) for group in rest]), QUESTIONS)) + 1]
    pair, tower, prompter = FrozenPair(model, language), LiveFeatures(model.vision), Prompter(recipe.text, locate)

    def messages(groups: list[list[Row]]) -> list[tuple[Tensor, TextBatch]]:
        made = []
        for chunk in (groups[i : i + MESSAGE] for i in range(0, len(groups), MESSAGE)):
            parts = zip(*((row.question, row.answer, row.image) for group in chunk for row in group), strict=True)
            made.append((tower.of([group[0].image for group in chunk]), prompter.batch(*parts)))
        return made

    calibration, features = [pair.sample(*message) for message in messages(known)], messages(tested)
    sample = Sample(
        tokens(calibration, "z", "image"),
        UpPlanner(pair, calibration, len(features)),
        [model.vision(x) for x, _ in features],
        [text for _, text in features],
        language,
    )
    counts = {"images": len(tested), "questions": sum(map(len, tested)), "calibration_images": CALIBRATION}
    return sample, counts | {"weights": str(identity)}


def statistics_of(calibration: Tensor) -> ChannelStatistics:
    """What makes features (..., D) of zero mean and unit deviation in each channel, by those of (N, D)."""
    normalise = ChannelStatistics(calibration.shape[-1], 0.0).eval()
    normalise.calibrate(calibration)
    return normalise


def more(name: str, loss: Tensor | None, base: Tensor | None) -> dict[str, float | None]:
    """Mean of the differences of losses (I,), and its standard error."""
    if loss is None or base is None:
        return dict.fromkeys((name, f"{name}_error"))
    return {name: float((loss - base).mean()), f"{name}_error": float((loss - base).std() / len(loss) ** 0.5)}
