"""Both sessions over the in-memory transport: the same code as over gRPC, without the sockets."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Tiny, make_recipe
from torch import Tensor

from bitseam import config
from bitseam.errors import BitseamError, NonFiniteError, PeerGoneError, RefusedError
from bitseam.parties.checkpoint import build_client, load_client, newest
from bitseam.parties.client import ClientSession
from bitseam.parties.optimise import Stepper
from bitseam.parties.seam import build_seam, terms
from bitseam.parties.server import ServerParty, ServerSession
from bitseam.parties.tables import use_rate
from bitseam.parties.text import Prompter, TextBatch
from bitseam.serve.server import build_party
from bitseam.train import train
from bitseam.transport import memory_pair
from bitseam.wire import messages_pb2 as pb

IDENTITY = {"seam__image_up__quantizer": "fp32", "seam__image_down__codec": "fp32"}
ENTROPY = {"seam__image_up__coding": "entropy", "seam__image_up__groups": 4}
RATE = {"quantizer": "rate-fsq", "coding": "entropy", "levels": 15, "clip": 7.0, "groups": 16}
QUESTIONS = ["is this a cat ?", "dog ?", "what is there ?", "this a dog ?"]
ANSWERS = ["yes", "a red cat", "no", "blue"]


@dataclass
class Pair:
    client: ClientSession
    party: ServerParty
    session: ServerSession
    failure: list[BaseException]


@contextmanager
def pair(recipe: config.Recipe, **told: str) -> Iterator[Pair]:
    """A client session with its server in a thread; `told` overrides terms that the client tells."""
    torch.manual_seed(7)
    party = build_party(recipe, str)
    model = build_client(recipe, str)
    left, right = memory_pair()
    session, failure = ServerSession(party, right), []

    def run() -> None:
        try:
            session.run()
        except BitseamError as error:
            failure.append(error)
        finally:
            right.close()

    thread = threading.Thread(target=run)
    thread.start()
    prompter = Prompter(recipe.text)
    agreed = terms(recipe, prompter.vocabulary, prompter.fingerprint, "fresh", training=True) | told
    try:
        with ClientSession(model, build_seam(recipe.seam), left, prompter.vocabulary) as client:
            client.open({k: v for k, v in agreed.items() if v}, training=True)
            yield Pair(client, party, session, failure)
    finally:
        thread.join(timeout=30)
        assert not thread.is_alive()


def batches(recipe: config.Recipe, client: ClientSession) -> Callable[[int], tuple[Tensor, TextBatch]]:
    """Two questions a micro-batch, each with an image of its own."""
    prompter = Prompter(recipe.text)
    size = recipe.train.batch

    def draw(number: int) -> tuple[Tensor, TextBatch]:
        pixels = torch.randn(4, 3, 56, 56, generator=torch.Generator().manual_seed(number * size // 4))
        pick = [(number * size + i) % 4 for i in range(size)]
        text = prompter.batch([QUESTIONS[i] for i in pick], [ANSWERS[i] for i in pick])
        return client.model.vision.features(pixels[pick]), text

    return draw


def weights(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


def test_identity_split_training_is_unsplit_training(tiny: Tiny, tmp_path: Path) -> None:
    recipe = make_recipe(tiny, **IDENTITY, out=str(tmp_path))
    with pair(recipe) as split:
        train(split.client, recipe, split.party.run, batches(recipe, split.client), tmp_path)
        trained = weights(split.client.model) | weights(split.party.model)

    torch.manual_seed(7)
    server = build_party(recipe, str).model
    client = build_client(recipe, str)
    steppers = [
        Stepper(client.parameters(), recipe.client.rate, recipe.train),
        Stepper(server.parameters(), recipe.server.rate, recipe.train),
    ]
    fresh = ClientSession(client, build_seam(recipe.seam), memory_pair()[0], 17)
    draw = batches(recipe, fresh)
    client.vision.calibrate(torch.cat([draw(i)[0] for i in range(recipe.train.calibrate)]))
    for step in range(recipe.train.steps):
        features, text = draw(step)
        server.loss(text, client.image(features).levels).backward()
        for stepper in steppers:
            stepper.step(int(text.answers.sum()))
    unsplit = weights(client) | weights(server)
    assert unsplit.keys() == trained.keys()
    for name, weight in unsplit.items():
        torch.testing.assert_close(trained[name], weight, rtol=1e-5, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


def test_accumulated_micro_batches_are_one_large_batch(tiny: Tiny, tmp_path: Path) -> None:
    ended = []
    for batch, accumulate in ((4, 1), (2, 2)):
        changes = {"train__batch": batch, "train__accumulate": accumulate, "train__calibrate": 2 * accumulate}
        recipe = make_recipe(tiny, **IDENTITY, **changes, train__steps=2)
        out = tmp_path / str(batch)
        with pair(replace(recipe, out=str(out))) as split:
            train(split.client, recipe, split.party.run, batches(recipe, split.client), out)
            ended.append(weights(split.client.model) | weights(split.party.model))
    for name in ended[0]:
        torch.testing.assert_close(ended[0][name], ended[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "seam",
    [
        {},
        {"seam__image_up__levels": 3, "seam__image_up__channels": 20, "seam__image_down__block": 16},
        {"seam__image_up__quantizer": "rd-fsq-tensor", "seam__image_down__codec": "bf16"},
        {"seam__image_up__quantizer": "tanh-fsq", "seam__image_up__levels": 5},
        {"seam__image_up__quantizer": "learned-clip-fsq", "seam__image_up__channels": 20},
        {"seam__text": "codes", "seam__text_up__quantizer": "learned-clip-fsq", "seam__text_up__levels": 8},
        {"seam__image_up__quantizer": "fp16", "seam__image_up__channels": 20, "seam__image_down__codec": "fp16"},
        {"seam__text": "codes", "seam__text_up__levels": 8, "seam__text_up__clip": 3.0},
        ENTROPY | {"seam__image_down__codec": "entropy-stochastic", "seam__image_down__step": 1.0},
        {"seam__image_up__quantizer": "rd-fsq-tensor", "seam__image_up__coding": "entropy"},
        {"seam__text": "codes", "seam__text_up__levels": 8, "seam__text_up__coding": "entropy"},
        {
            "seam__image_up": {
                "quantizer": "step-fsq",
                "levels": 7,
                "steps": [0, *[0.5] * 16, *[1.5] * 15],
                "groups": 32,
                "projection": "fixed",
            }
        },
        {"seam__text": "codes", "seam__text_up": {"quantizer": "step-fsq", "coding": "entropy", "levels": 5}},
        {"seam__image_up": RATE | {"distortion_weight": 0.05}},
        {"seam__text": "codes", "seam__text_up": RATE | {"rates": (1, 2)}},
        {"train__autocast": "bf16"},
        {"seam__image_up__projection": "fixed"},
        {"server__tune": "lora"},
        {"server__tune": "frozen"},
        {"client__tune_vision": True},
    ],
)
def test_every_kind_of_seam_learns(tiny: Tiny, tmp_path: Path, seam: dict[str, Any]) -> None:
    rates = {"client__rate": 1e-2, "server__rate": 1e-2, "train__steps": 30, "train__checkpoint_every": 100}
    recipe = make_recipe(tiny, **rates, **seam, out=str(tmp_path))
    losses: list[float] = []
    with pair(recipe) as split:
        split.party.on_step = lambda report: losses.append(report.loss)
        train(split.client, recipe, split.party.run, batches(recipe, split.client), tmp_path)
    assert len(losses) == 30
    assert sum(losses[-4:]) < 0.98 * sum(losses[:4]), losses


@pytest.mark.parametrize("text", ["ids", "codes"])
def test_both_sides_know_the_statistics_that_the_codes_were_made_with(tiny: Tiny, tmp_path: Path, text: str) -> None:
    rates = {"client__rate": 1e-2, "train__steps": 12, "train__checkpoint_every": 100}
    recipe = make_recipe(tiny, **rates, seam__text=text, out=str(tmp_path))
    with pair(recipe) as split:
        features, tokens = batches(recipe, split.client)(0)
        split.client.calibrate(features, tokens)
        first = split.client.model.image_quantizer.statistics()
        train(split.client, recipe, split.party.run, batches(recipe, split.client), tmp_path)
        client, server = split.client.model, split.party.model
        sides = [(client.image_quantizer, server.image_projection), (client.text_quantizer, server.text_projection)]
        for quantizer, projection in sides[: 1 if text == "ids" else 2]:
            assert quantizer is not None
            assert projection is not None
            mean, std = quantizer.statistics()
            assert torch.equal(mean, projection.mean)
            assert torch.equal(std, projection.std)
        assert not torch.equal(first[0], client.image_quantizer.statistics()[0])  # they moved, or this shows nothing


@pytest.mark.parametrize("channels", [20, None])
def test_a_fixed_projection_stays_as_it_starts(tiny: Tiny, tmp_path: Path, channels: int | None) -> None:
    changes = {"seam__image_up__projection": "fixed", "seam__image_up__channels": channels, "train__steps": 3}
    recipe = make_recipe(tiny, **changes, out=str(tmp_path))
    with pair(recipe) as split:
        sides = [split.client.model.image_quantizer.project, split.party.model.image_projection]
        start = [side.weight.detach().clone() for side in sides]
        before = weights(split.client.model)
        train(split.client, recipe, split.party.run, batches(recipe, split.client), tmp_path)
        assert all(torch.equal(side.weight, weight) for side, weight in zip(sides, start, strict=True))
        assert any(not torch.equal(before[name], weight) for name, weight in weights(split.client.model).items())
    torch.testing.assert_close(start[0] @ start[1], torch.eye(len(start[0])))  # the server undoes the client's


def test_ledger_counts_every_byte(tiny: Tiny, tmp_path: Path) -> None:
    recipe = make_recipe(tiny, seam__image_up__channels=16, out=str(tmp_path))
    with pair(recipe) as split:
        train(split.client, recipe, split.party.run, batches(recipe, split.client), tmp_path)
        sent, received = split.client.channel.socket_bytes() or (0, 0)
        mine = split.client.ledger
        assert (mine.total("up").bytes, mine.total("down").bytes) == (sent, received)
        assert mine.total("up").bytes == split.session.ledger.total("up").bytes
        image = mine.entries["up", "Forward", "image (uniform)"]
        tokens = split.client.model.vision.tokens
        assert image.messages == 4
        assert image.bytes == 4 * 2 * tokens * 16 // 4  # steps x batch x tokens x channels at 2 bits
        assert image.fp16_bytes == 16 * image.bytes  # two bytes for each of 32 features


def test_tables_cross_once_and_are_kept_on_both_sides(tiny: Tiny, tmp_path: Path) -> None:
    recipe = make_recipe(tiny, **ENTROPY, out=str(tmp_path))
    with pair(recipe) as split:
        saved = train(split.client, recipe, split.party.run, batches(recipe, split.client), tmp_path)
        mine, codec = split.client.ledger, split.party.seam.image.up
        assert mine.total("up").bytes == split.client.channel.socket_bytes()[0]
        assert mine.entries["up", "Calibrate", "rest"].messages == 1
        assert mine.entries["up", "Calibrate", "rest"].bytes > len(codec.table_bytes())
        image = mine.entries["up", "Forward", "image (entropy-uniform)"]
    assert codec.tables
    packed = recipe.train.steps * 2 * split.client.model.vision.tokens * 32 // 4
    assert image.bytes < packed + 4 * recipe.train.steps
    model, _, _ = load_client(saved, str)
    again = ClientSession(model, build_seam(recipe.seam), memory_pair()[0], 17)
    party = build_party(recipe, str, newest(tmp_path, "server"))
    assert party.seam.image.up == again._seam.image.up == codec


def test_tables_are_sent_again_when_codes_have_drifted(tiny: Tiny) -> None:
    recipe = make_recipe(tiny, **ENTROPY, seam__image_up__levels=16, seam__image_up__clip=2.51)
    with pair(recipe) as split:
        features, text = batches(recipe, split.client)(0)
        split.client.calibrate(features, text)
        first = split.party.seam.image.up
        statistics = {name: b.clone() for name, b in split.client.model.image_quantizer.named_buffers()}
        sizes, used = [], {first}
        for step in range(1, 41):
            split.client.model.image_quantizer.load_state_dict(statistics, strict=False)  # no help from that side
            sent = split.client.ledger.entries["up", "Forward", "image (entropy-uniform)"].bytes
            split.client.step(step, 0, True, features / 4, text, 0.25)
            sizes.append(split.client.ledger.entries["up", "Forward", "image (entropy-uniform)"].bytes - sent)
            assert split.party.seam.image.up == split.client._seam.image.up
            used.add(split.party.seam.image.up)
        assert 2 <= len(used) <= 8
        assert sizes[-1] < 0.8 * sizes[0]


@pytest.mark.parametrize(
    ("seam", "calibration", "complaint"),
    [
        ({}, {"image": pb.Statistics(tables=bytes(8))}, "image: tables for a codec that has none"),
        (ENTROPY, {"image": pb.Statistics(tables=bytes(31))}, "take 32 bytes, not 31"),
        (ENTROPY, {"image": pb.Statistics(tables=bytes(32))}, "table 0"),
        (ENTROPY, {"text": pb.Statistics(tables=bytes(32))}, "text: tables for a codec that has none"),
    ],
)
def test_tables_are_checked(tiny: Tiny, seam: dict[str, Any], calibration: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RefusedError, match=complaint), pair(make_recipe(tiny, **seam)) as split:
        before = split.party.seam
        split.client._peer.exchange(pb.Calibrate(**calibration), pb.Ack)
    assert split.party.seam is before


def test_predicted_bytes_are_those_on_the_wire(tiny: Tiny) -> None:
    up = RATE | {"projection": "fixed", "rates": (1, 2.5), "distortion_weight": 0.05}
    recipe = make_recipe(tiny, seam__image_up=up, client__rate=1e-2)
    with pair(recipe) as split:
        count, model = 96, split.client.model
        pixels = torch.randn(count, 3, 56, 56, generator=torch.Generator().manual_seed(0))
        features, text = model.vision.features(pixels), Prompter(recipe.text).batch(QUESTIONS * 24, ANSWERS * 24)
        split.client.calibrate(features, text)
        stepper, parts = Stepper(model.parameters(), recipe.client.rate, recipe.train), []
        for step in range(1, 13):
            part = split.client.step(step, 0, True, features, text, up["distortion_weight"])
            parts.append(part)
            stepper.step(part.answer_tokens)
            assert split.party.seam.image.rates == split.client._seam.image.rates
            assert torch.equal(model.image_quantizer.rotation(), split.party.model.image_projection.rotation)
        assert sum(part.coded_bytes for part in parts) == split.client.ledger.coded_bytes("Forward", "image")
        for part in parts:
            assert part.predicted_bytes == pytest.approx(part.coded_bytes, rel=0.02)
        assert len({codec.tables for codec in split.party.seam.image.rates}) == 2  # each rate has been drawn
        assert max(part.coded_bytes for part in parts) > 1.5 * min(part.coded_bytes for part in parts)


def test_levels_of_each_rate_cross_unchanged(tiny: Tiny) -> None:
    recipe = make_recipe(tiny, seam__image_up=RATE | {"rates": (1, 0.5, 4)})
    model, seam = build_client(recipe, str).eval(), build_seam(recipe.seam)
    features = torch.randn(8, 4, model.vision.tower.width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.image_quantizer.calibrate(model.vision(features))
        for rate, codec in enumerate(seam.image.rates):
            use_rate(model, seam, "image", rate)
            levels = model.image(features).levels
            assert torch.equal(codec.decode(codec.encode(levels), levels.shape), levels)


def test_one_model_answers_at_each_of_its_rates(tiny: Tiny, tmp_path: Path) -> None:
    up = RATE | {"rates": (1, 4)}
    recipe = make_recipe(tiny, seam__image_up=up, train__steps=6, train__checkpoint_every=6, out=str(tmp_path))
    with pair(recipe) as split:
        saved = train(split.client, recipe, split.party.run, batches(recipe, split.client), tmp_path)
        features, _ = batches(recipe, split.client)(0)
    sizes = []
    for rate in (0, 1):
        asked = replace(recipe, seam=replace(recipe.seam, image_up=replace(recipe.seam.image_up, rate=rate)))
        model, _, identity = load_client(saved, str, asked.seam)
        party = build_party(recipe, str, newest(tmp_path, "server"))  # the server need not be told beforehand
        ours, theirs = memory_pair()
        server = threading.Thread(target=ServerSession(party, theirs).run)
        server.start()
        prompter = Prompter(recipe.text)
        with ClientSession(model, build_seam(asked.seam), ours, prompter.vocabulary) as client:
            client.open(terms(asked, prompter.vocabulary, prompter.fingerprint, str(identity), False), False)
            question = prompter.batch(QUESTIONS[:2])
            assert list(client.ask(features, question, 3))
            sizes.append(client.ledger.coded_bytes("Ask", "image"))
        server.join()
    assert sizes[1] < 0.8 * sizes[0]


@pytest.mark.parametrize(
    ("statistics", "complaint"),
    [
        (pb.Statistics(rotation=bytes(1023)), "rotation of 1023 numbers, not 1024"),
        (pb.Statistics(tables=bytes(480), rate=2), "image: rate 2 where 2 were agreed"),
        (pb.Statistics(tables=bytes(480), rate=1), "table 0"),
    ],
)
def test_rates_and_rotations_are_checked(tiny: Tiny, statistics: pb.Statistics, complaint: str) -> None:
    recipe = make_recipe(tiny, seam__image_up=RATE | {"rates": (1, 2)})
    with pytest.raises(RefusedError, match=complaint), pair(recipe) as split:
        split.client._peer.exchange(pb.Calibrate(image=statistics), pb.Ack)


def test_a_rate_that_was_not_agreed_is_refused(tiny: Tiny) -> None:
    with pytest.raises(RefusedError, match="image codes: rate 1 where 1 were agreed"), pair(make_recipe(tiny)) as split:
        features, text = batches(make_recipe(tiny), split.client)(0)
        split.client.calibrate(features, text)
        image = split.client._seam.image
        split.client._seam = replace(split.client._seam, image=replace(image, rates=image.rates * 2, asked=1))
        list(split.client.ask(features, Prompter(make_recipe(tiny).text).batch(QUESTIONS[:2]), 3))


def test_asking_gives_the_same_answers_alone_and_in_company(tiny: Tiny) -> None:
    recipe = make_recipe(tiny)
    with pair(recipe) as split:
        features, text = batches(recipe, split.client)(0)
        split.client.calibrate(features, text)
        prompter = Prompter(recipe.text)
        both = list(zip(*split.client.ask(features, prompter.batch(QUESTIONS[:2]), 5), strict=True))
        for i in range(2):
            alone = next(zip(*split.client.ask(features[i : i + 1], prompter.batch([QUESTIONS[i]]), 5), strict=True))
            assert prompter.decode(alone) == prompter.decode(both[i])


@pytest.mark.parametrize(
    ("term", "value"),
    [
        ("codec.image.up", '{"id":"fp16"}'),
        ("text.tokenizer", "0123456789abcdef"),
        ("model.weights", "feedbeef@7"),
        ("train.steps", "5"),
        ("seam.width", ""),
    ],
)
def test_a_difference_is_refused_by_name_on_both_sides(tiny: Tiny, term: str, value: str) -> None:
    refused: list[Pair] = []
    with pytest.raises(RefusedError, match=term) as caught, pair(make_recipe(tiny), **{term: value}) as split:
        refused.append(split)
    assert not refused
    assert (value or "(absent)") in str(caught.value)


def test_nan_features_stop_both_sides_with_the_reason(tiny: Tiny) -> None:
    recipe = make_recipe(tiny)
    with pytest.raises(NonFiniteError), pair(recipe) as split:
        features, text = batches(recipe, split.client)(0)
        split.client.calibrate(features, text)
        before = weights(split.party.model)
        features[0, 0, 0] = float("nan")
        split.client.step(1, 0, True, features, text, 0.25)
    assert isinstance(split.failure[0], PeerGoneError)
    assert "NonFiniteError" in str(split.failure[0])
    after = weights(split.party.model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_step_out_of_order_is_refused(tiny: Tiny) -> None:
    recipe = make_recipe(tiny)
    with pytest.raises(RefusedError, match="step 9 where 1 is due"), pair(recipe) as split:
        features, text = batches(recipe, split.client)(0)
        split.client.calibrate(features, text)
        split.client.step(9, 0, True, features, text, 0.25)
    assert "step 9 where 1 is due" in str(split.failure[0])


def test_codes_of_another_shape_are_refused(tiny: Tiny) -> None:
    recipe = make_recipe(tiny)
    with pytest.raises(RefusedError, match="image codes: shape"), pair(recipe) as split:
        features, text = batches(recipe, split.client)(0)
        split.client.calibrate(features, text)
        split.client.model.image_quantizer.forward = lambda x: type(
            "Q", (), {"levels": torch.zeros(2, 4, 31), "distortion": torch.zeros(())}
        )()
        split.client.step(1, 0, True, features, text, 0.25)


def test_a_question_that_holds_its_answer_is_refused(tiny: Tiny) -> None:
    recipe = make_recipe(tiny)
    with pytest.raises(RefusedError, match="a question holds no answers"), pair(recipe) as split:
        features, text = batches(recipe, split.client)(0)
        split.client.calibrate(features, text)
        list(split.client.ask(features, text, 5))


def test_text_that_is_damaged_is_refused_by_name(tiny: Tiny) -> None:
    recipe = make_recipe(tiny)
    with pytest.raises(RefusedError, match="text: 0 bytes are not"), pair(recipe) as split:
        image = pb.Coded(shape=[1, 1, 1])
        split.client._peer.exchange(pb.Forward(step=1, text=pb.Text(sequences=1), image=image), pb.Backward)
    assert split.party.step == 0
