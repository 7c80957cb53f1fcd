"""What the two models make of a batch, which tensors are looked up where, and how long rows may be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Tiny, make_recipe
from safetensors.torch import save_file
from test_layout import images, model_of, text_of

from bitseam.errors import ModelError
from bitseam.models.language.half import load_language_half
from bitseam.models.language.loading import _common_parts, _one_tensor, load_language
from bitseam.models.positions import _Reads
from bitseam.models.proof import _undisturbed
from bitseam.models.server import ServerModel, Ways
from bitseam.runs.checkpoint import build_client
from bitseam.text.batch import TextBatch

TEXT = text_of([3, 2, 4], [1, 1, 0], [0, 0, 1], [4, 5, 6, 4, 7, 8, 9, 10, 11])


class Told:
    """A streamer that keeps what it is told."""

    def __init__(self) -> None:
        self.columns: list[list[int]] = []
        self.ended = 0

    def put(self, value: torch.Tensor) -> None:
        self.columns.append(value.tolist())

    def end(self) -> None:
        self.ended += 1


def asked(model: ServerModel, ways: Ways, text: TextBatch = TEXT, stops: Any = (), longest: int = 3) -> Any:
    told = Told()
    with torch.no_grad():
        rows = model.embed(text, {"image": images(TEXT)})
        answers = model.answers(text, *rows, ways, longest, stops, 0, told)
    assert told.ended == 1
    return answers.tolist(), told.columns


def alone(text: TextBatch, which: int) -> TextBatch:
    start = int(text.lengths[:which].sum())
    end = start + int(text.lengths[which])
    one = slice(which, which + 1)
    return TextBatch(
        text.ids[start:end], text.lengths[one], text.image_at[one], text.image[one], text.answers[start:end]
    )


@pytest.mark.parametrize("way", ["together", "alone", "uncached"])
def test_answers_are_greedy_whichever_way_and_streamed_column_by_column(tiny: Tiny, way: Any) -> None:
    torch.manual_seed(0)
    model = model_of(tiny)
    rows, image = model.embed(TEXT, {"image": images(TEXT)})
    expected = []
    for which in range(3):
        start, at = int(TEXT.lengths[:which].sum()), int(TEXT.image_at[which])
        row = rows[start : start + int(TEXT.lengths[which])]
        row = torch.cat([row[:at], image[TEXT.image[which]], row[at:]])
        tokens: list[int] = []
        for _ in range(3):
            tokens.append(int(model.language.run(inputs_embeds=row[None]).logits[0, -1].argmax()))
            row = torch.cat([row, model.language.embed(torch.tensor(tokens[-1:]))])
        expected.append(tokens)
        answers, told = asked(model, Ways(answers=way), alone(TEXT, which))
        assert answers == [tokens]
        assert [column[-1] for column in told[-3:]] == tokens
    answers, told = asked(model, Ways(answers=way))
    assert answers == expected
    assert [list(column) for column in zip(*told[-3:], strict=True)] == expected
    stop = expected[0][1]
    ended, told = asked(model, Ways(answers=way), stops={stop})
    for tokens, one in zip(expected, ended, strict=True):
        before = tokens[: tokens.index(stop)] if stop in tokens else tokens
        assert one[: len(before)] == before
        assert set(one[len(before) :]) <= {0}
    assert [list(column) for column in zip(*told[-len(ended[0]) :], strict=True)] == ended


def test_answers_end_by_the_models_own_stops_and_the_end_that_is_given(tiny: Tiny) -> None:
    model = model_of(tiny)
    levels = {"image": images(TEXT).detach()}
    free, _ = asked(model, model.ways, longest=1)
    first = free[0][0]
    model.language.stops = frozenset()
    assert model.generate(TEXT, levels, 2, end=first)[0].tolist()[0] == first
    told = Told()
    model.language.stops = frozenset({first})
    answers = model.generate(TEXT, levels, 2, end=1, streamer=told)
    assert answers[0].tolist() == [1] * answers.shape[1]
    assert told.ended == 1
    assert not answers.requires_grad


@pytest.mark.parametrize("ways", [Ways("packed"), Ways("padded"), Ways("alone"), Ways("alone", everywhere=True)])
def test_a_loss_is_summed_over_answers_and_logits_are_theirs(tiny: Tiny, ways: Ways) -> None:
    model = model_of(tiny)
    model.ways = ways
    levels = {"image": images(TEXT)}
    logits, ids = model.answer_logits(TEXT, levels)
    assert ids.tolist() == TEXT.ids[TEXT.answers].tolist()
    assert logits.shape == (len(ids), model.language.vocabulary)
    due = -logits.log_softmax(-1)[torch.arange(len(ids)), ids].sum()
    torch.testing.assert_close(model.loss(TEXT, levels), due)


def test_prompts_as_codes_stand_where_their_ids_would(tiny: Tiny) -> None:
    streams: dict[str, Any] = {"streams__text": {"quantizer": "none", "codec": "fp32"}}
    recipe = make_recipe(tiny, streams__image={"quantizer": "none", "codec": "fp32"}, **streams)
    model = ServerModel(load_language_half(recipe.server), recipe).eval()
    assert model.hides_prompts
    assert not model_of(tiny).hides_prompts
    prompt = torch.randn(int((~TEXT.answers).sum()), 32)
    assert model.tokens_due(TEXT, 4) == {"image": (2, 4), "text": (len(prompt),)}
    assert model_of(tiny).tokens_due(TEXT, 4) == {"image": (2, 4)}
    rows, _ = model.embed(TEXT, {"image": images(TEXT), "text": prompt})
    assert torch.equal(rows[~TEXT.answers], prompt)
    assert torch.equal(rows[TEXT.answers], model.language.embed(TEXT.ids[TEXT.answers]))
    client = build_client(recipe, str)
    assert client.hides_prompts
    features = torch.randn(2, 4, client.vision.tower.width)
    carried = client.features(features, TEXT)
    assert list(carried) == ["image", "text"]
    assert torch.equal(carried["text"], model.language.embed(TEXT.ids[~TEXT.answers]))
    assert torch.equal(carried["image"], client.vision(features))
    assert not any(p.requires_grad for p in client.embedding.parameters())  # type: ignore[union-attr]
    with pytest.raises(ModelError, match="needs the language model's token embedding"):
        type(client)(client.vision, recipe)


def test_questions_are_asked_at_their_own_rate(tiny: Tiny) -> None:
    image = {"quantizer": "rate-fsq", "codec": "entropy-uniform", "levels": 15, "clip": 7.0}
    client = build_client(make_recipe(tiny, streams__image=image | {"rates": [1.0, 2.0], "rate": 1}), str)
    assert client.senders()["image"].rate == 0
    client.use_asked()
    assert client.senders()["image"].rate == 1
    assert not client.hides_prompts
    assert client.embedding is None


# Which layers train


@pytest.mark.parametrize(("tune", "training"), [("full", True), ("frozen", False), ("lora", False)])
def test_a_language_model_that_is_not_tuned_stays_in_evaluation(tiny: Tiny, tune: str, training: bool) -> None:
    recipe = make_recipe(tiny, server__tune=tune)
    model = ServerModel(load_language_half(recipe.server), recipe)
    assert model.train() is model
    assert model.training
    assert model.language.base.training == training
    drops = [one.training for name, one in model.named_modules() if name.endswith("lora_dropout")]
    assert drops == [True] * len(drops)
    assert bool(drops) == (tune == "lora")
    assert any(p.requires_grad for p in model.language.parameters()) == (tune != "frozen")
    model.eval()
    assert not any(one.training for one in model.modules())


def test_what_is_tried_in_a_proof_leaves_no_trace(tiny: Tiny) -> None:
    model = model_of(tiny).train()
    state, allowed = torch.get_rng_state(), torch.backends.cudnn.allow_tf32
    with torch.no_grad(), _undisturbed(model):
        assert torch.is_grad_enabled()
        assert not model.training
        assert not torch.backends.cudnn.allow_tf32
        torch.rand(3)
    assert model.training
    assert torch.backends.cudnn.allow_tf32 == allowed
    assert torch.equal(torch.get_rng_state(), state)


# Tensors of files


def test_names_share_their_last_parts() -> None:
    assert _common_parts("a.b.c", "x.b.c") == 2
    assert _common_parts("b.c", "a.b.c") == 2
    assert _common_parts("a.b", "a.c") == 0


def test_the_tensor_whose_name_is_most_alike_is_read(tmp_path: Path) -> None:
    tensors = {
        "model.embed.weight": torch.full((3, 2), 1.0),
        "vision.embed.weight": torch.full((3, 2), 2.0),
        "text.model.embed.weight": torch.full((3, 3), 3.0),
        "lm_head.weight": torch.full((3, 2), 4.0),
    }
    save_file(tensors, tmp_path / "x.safetensors")

    def read(*names: str, shape: tuple[int, ...] = (3, 2)) -> float:
        return float(_one_tensor(tmp_path, list(names), shape)[0, 0])

    assert read("model.embed.weight") == 1
    assert read("vision.embed.weight") == 2
    assert read("model.embed.weight", shape=(3, 3)) == 3
    assert read("other.embed.weight", "lm_head.weight") == 4  # the first could be either of two
    for names, shape in ((["embed.weight"], (3, 2)), (["model.embed.bias"], (3, 2)), (["lm_head.weight"], (2, 2))):
        with pytest.raises(ModelError, match=rf"no {names[0]} of shape \({shape[0]}, 2\) in its safetensors files"):
            _one_tensor(tmp_path, names, shape)


def test_a_language_model_gives_no_tuples_and_leaves_weights_alone(tiny: Tiny) -> None:
    language = load_language(tiny.language)
    assert language.config.return_dict is True
    assert next(language.parameters()).dtype == torch.float32


# Tables of positions


def reads(*operations: Any) -> set[int]:
    with _Reads() as found:
        for run in operations:
            run()
    return found.most


def test_tables_that_are_read_one_place_a_token() -> None:
    table, line = torch.zeros(20, 3), torch.arange(7)
    assert reads(lambda: torch.nn.functional.embedding(line, table)) == {20}
    assert reads(lambda: torch.nn.functional.embedding(line[None] + 2, table)) == {18}
    assert reads(lambda: table[line]) == {20}
    assert reads(lambda: table.T[:, line]) == {20}
    assert reads(lambda: table.index_select(0, line + 1)) == {19}
    assert reads(lambda: table.T.gather(1, line.expand(3, 7))) == {20}
    for other in (line * 2, line.flip(0), torch.arange(6), torch.zeros(7).long()):
        assert reads(lambda other=other: torch.nn.functional.embedding(other, table)) == set()
    assert reads(lambda: torch.nn.functional.embedding(line, torch.zeros(7, 3))) == set()  # as long as the row
    assert reads(lambda: torch.nn.functional.embedding(line, torch.zeros(8, 3))) == {8}
    assert reads(lambda: table[torch.ones(20, dtype=torch.bool)], lambda: table + 1) == set()
