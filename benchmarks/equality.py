"""Language models of transformers, made tiny, split with the identity codec, against the same checkpoint unsplit.

    python benchmarks/equality.py [--only NAME ...] [--out docs/results/equality.json]

Each is saved, loaded as the server loads it, proven as the server proves it, and compared with the checkpoint in
transformers, each question alone: loss, gradients of all parameters and by the images, greedy tokens. "alone": a
question an image; "packed": two questions an image. Exits with status 1 where a model differs and is not refused.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from architectures import LANGUAGE, TINY, VOCABULARY
from torch import Tensor

from bitseam import config
from bitseam.cli.machine import circumstances
from bitseam.errors import BitseamError
from bitseam.models.language.half import load_language_half
from bitseam.models.proof import prove
from bitseam.models.server import ServerModel
from bitseam.text.batch import TextBatch

EQUAL = 1e-5  # relative
IMAGE, NEW, END = 5, 6, 2  # tokens of an image, of an answer, and the one that ends it
# Of each question: its image, tokens before and behind it, and of its answer.
QUESTIONS = {
    "alone": [(0, 2, 3, 4), (1, 2, 1, 2), (2, 0, 4, 3), (3, 3, 0, 2)],
    "packed": [(0, 2, 3, 4), (0, 2, 6, 3), (1, 0, 0, 3), (1, 0, 2, 2), (2, 1, 1, 1)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="names of models; all where this is left out")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    quiet()
    commit = circumstances(1)["commit"]
    table: list[dict[str, Any]] = []
    for name in options.only or LANGUAGE:
        for row in language_rows(name):
            print(json.dumps(row), flush=True)
            table.append(row)
    if not options.only and importlib.util.find_spec("equality_towers") is not None:
        from equality_towers import rows as tower_rows

        table += tower_rows()
    if options.out:
        options.out.write_text(json.dumps([row | {"commit": commit} for row in table], indent=1) + "\n")
    wrong = [row["model"] for row in table if row["verdict"] == "different"]
    sys.exit(f"different, and not refused: {', '.join(wrong)}" if wrong else 0)


def quiet() -> None:
    """transformers tells much about models that nobody trained."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")


def make(name: str, folder: Path) -> None:
    """Save the tiny model of that name, its matrices redrawn so that attention matters."""
    kind, changes = LANGUAGE[name]
    torch.manual_seed(0)
    settings = {name: value for name, value in {**TINY, **changes}.items() if value is not None}
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1) if parameter.dim() < 2 else parameter.normal_(0, 0.3)
    model.save_pretrained(folder)


def language_rows(name: str) -> list[dict[str, Any]]:
    """A row alone and a row packed."""
    with tempfile.TemporaryDirectory() as folder:
        make(name, Path(folder))
        return [{"kind": "language", "model": name, "mode": mode, **compare(folder, mode)} for mode in QUESTIONS]


def compare(folder: str, mode: str) -> dict[str, Any]:
    """One row's figures and verdict."""
    refused = {"loss_diff": None, "grad_diff": None, "tokens_equal": None, "verdict": "refused"}
    try:
        half = load_language_half(config.Server(folder, "full"))
        recipe = _recipe(folder, half.width)
        ours = ServerModel(half, recipe).eval()
        proof = prove(ours, recipe)
    except BitseamError as error:
        return refused | {"reason": str(error).replace(folder, "CHECKPOINT")}
    ours.ways = proof.ways
    own = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    own.config.use_cache = False
    text, image = batch(QUESTIONS[mode], half.width, answers=True)
    loss = ours.loss(text, {"image": image})
    loss.backward()
    gradients = {n: p.grad for n, p in half.model.named_parameters()} | {"image": image.grad}
    own_loss, own_image = unsplit_loss(own, text, image.detach())
    own_gradients = {n: p.grad for n, p in own.named_parameters()} | {"image": own_image}
    asked, image = batch(QUESTIONS[mode], half.width, answers=False)
    tokens = ours.generate(asked, {"image": image.detach()}, NEW, END)
    row = {
        "loss_diff": abs(float(loss.detach()) - own_loss) / abs(own_loss),
        "grad_diff": _apart(gradients, own_gradients),
        "tokens_equal": tokens.tolist() == unsplit_tokens(own, asked, image.detach(), tokens.shape[1]),
    }
    equal = row["loss_diff"] <= EQUAL and row["grad_diff"] <= EQUAL and row["tokens_equal"]
    taken = "unpacked" if mode == "packed" and not proof.packs else "equal"
    return row | {
        "verdict": taken if equal else "different",
        "reason": "; ".join(f"{k}: {v}" for k, v in proof.others.items()),
    }


def batch(questions: Sequence[tuple[int, int, int, int]], width: int, answers: bool) -> tuple[TextBatch, Tensor]:
    """A batch of random tokens, and its images' features (I, M, D)."""
    generator = torch.Generator().manual_seed(1)
    count = max(image for image, *_ in questions) + 1
    before = [torch.randint(3, VOCABULARY, (row[1],), generator=generator) for row in questions]
    first = {row[0]: tokens for row, tokens in reversed(list(zip(questions, before, strict=True)))}
    ids, mask, lengths = [], [], []
    for image, _, behind, answer in questions:
        rest = torch.randint(3, VOCABULARY, (behind + answer,), generator=generator)
        whole = torch.cat([first[image], rest if answers else rest[:behind]])
        ids.append(whole)
        lengths.append(len(whole))
        mask += [False] * (len(first[image]) + behind) + [True] * (answer if answers else 0)
    text = TextBatch(
        ids=torch.cat(ids),
        lengths=torch.tensor(lengths),
        image_at=torch.tensor([len(first[row[0]]) for row in questions]),
        image=torch.tensor([row[0] for row in questions]),
        answers=torch.tensor(mask, dtype=torch.bool),
    )
    return text, torch.randn(count, IMAGE, width, generator=generator).requires_grad_()


def unsplit_loss(own: Any, text: TextBatch, image: Tensor) -> tuple[float, Tensor]:
    """Summed, each question alone; gradients are left in the parameters. And that by the images."""
    image.requires_grad_()
    total = 0.0
    for embeds, ids, answers in _rows(own, text, image):
        labels = torch.where(answers, ids, -100)[None]
        loss = own(inputs_embeds=embeds[None], labels=labels).loss * answers.sum()
        loss.backward()
        total += float(loss.detach())
    assert image.grad is not None
    return total, image.grad


@torch.no_grad()
def unsplit_tokens(own: Any, text: TextBatch, image: Tensor, count: int) -> list[list[int]]:
    """Greedy, each question alone, a whole forward pass a token."""
    told = []
    for embeds, _, _ in _rows(own, text, image):
        tokens: list[int] = []
        while len(tokens) < count:
            ended = END in tokens
            tokens.append(END if ended else int(own(inputs_embeds=embeds[None].clone()).logits[0, -1].argmax()))
            embeds = torch.cat([embeds, own.get_input_embeddings()(torch.tensor(tokens[-1:]))])
        told.append(tokens)
    return told


def _rows(own: Any, text: TextBatch, image: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    rows, start = [], 0
    for length, at, picture in zip(text.lengths.tolist(), text.image_at.tolist(), text.image.tolist(), strict=True):
        ids, answers = text.ids[start : start + length], text.answers[start : start + length]
        words = own.get_input_embeddings()(ids)
        none = torch.zeros(IMAGE, dtype=torch.bool)
        rows.append(
            (
                torch.cat([words[:at], image[picture], words[at:]]),
                torch.cat([ids[:at], none.long(), ids[at:]]),
                torch.cat([answers[:at], none, answers[at:]]),
            )
        )
        start += length
    return rows


def _apart(ours: dict[str, Any], own: dict[str, Any]) -> float:
    """The largest difference of a gradient, relative to it, or to a hundredth of all where it is smaller than that
    (a bias of keys has none but rounding)."""
    assert ours.keys() == own.keys()
    pairs = {name: (ours[name], own[name]) for name in own if ours[name] is not None or own[name] is not None}
    assert all(one is not None and other is not None for one, other in pairs.values()), "gradients of other parameters"
    floor = 1e-2 * float(torch.stack([other.norm() for _, other in pairs.values()]).norm())
    return max(float((one - other).norm()) / max(float(other.norm()), floor) for one, other in pairs.values())


def _recipe(folder: str, width: int) -> config.Recipe:
    return config.parse_recipe(
        {
            "name": "equality",
            "client": {"checkpoint": folder},
            "server": {"checkpoint": folder, "tune": "full"},
            "seam": {"width": width, "max_tokens": 16},
            "streams": {"image": {"quantizer": "none", "codec": "fp32", "gradient": "fp32"}},
            "text": {"tokenizer": folder, "max_tokens": 24},
            "data": {"train": ""},
            "train": {"steps": 1},
        },
        "equality",
    )


if __name__ == "__main__":
    main()
