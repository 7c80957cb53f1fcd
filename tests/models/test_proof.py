"""The server proves its own model: what a model does by itself is what it does when it is split, or it is refused."""

from __future__ import annotations

from functools import wraps
from typing import Any

import pytest
import torch
from conftest import Tiny, load_benchmark, make_recipe
from pairs import IDENTITY

from bitseam.errors import ModelError
from bitseam.models.proof import TOLERANCES, prove
from bitseam.models.server import Ways
from bitseam.runs.checkpoint import build_server
from bitseam.sessions.party import ServerParty

# Of each model of the campaign (`make equality` tries all): whether its questions share rows.
VERDICTS = {
    "M1": {"gemma 2": "equal", "granite": "equal", "cohere": "equal"},
    "M2": {
        "mistral, window": "equal",
        "phi-3, longrope": "unpacked",
        "llama, dynamic": "refused",
        "gpt-neo, local": "unpacked",
    },
    "M3": {"mamba": "unpacked", "recurrentgemma": "unpacked", "bloom": "unpacked"},
    "M12": {"mixtral": "equal", "mixtral, router loss": "refused"},
    "M13": {"bert": "equal", "roberta": "unpacked", "bert, not a decoder": "refused", "ctrl": "equal"},
}


@pytest.fixture(scope="module")
def equality() -> Any:
    module = load_benchmark("equality")
    module.quiet()
    return module


def check(equality: Any, model: str, verdict: str) -> None:
    alone, packed = equality.language_rows(model)
    assert packed["verdict"] == verdict
    assert alone["verdict"] == ("refused" if verdict == "refused" else "equal")
    for row in (alone, packed):
        assert verdict == "refused" or max(row["loss_diff"], row["grad_diff"]) <= equality.EQUAL
        assert verdict == "refused" or row["tokens_equal"]


@pytest.mark.parametrize(("model", "verdict"), VERDICTS["M1"].items())
def test_M1_what_follows_the_head_is_kept(equality: Any, model: str, verdict: str) -> None:
    check(equality, model, verdict)


@pytest.mark.parametrize(("model", "verdict"), VERDICTS["M2"].items())
def test_M2_windows_are_in_positions(equality: Any, model: str, verdict: str) -> None:
    check(equality, model, verdict)


@pytest.mark.parametrize(("model", "verdict"), VERDICTS["M3"].items())
def test_M3_no_state_leaks_between_rows(equality: Any, model: str, verdict: str) -> None:
    check(equality, model, verdict)


@pytest.mark.parametrize(("model", "verdict"), VERDICTS["M12"].items())
def test_M12_a_loss_that_depends_on_the_batch_is_refused(equality: Any, model: str, verdict: str) -> None:
    check(equality, model, verdict)


@pytest.mark.parametrize(("model", "verdict"), VERDICTS["M13"].items())
def test_M13_heads_that_transform_and_positions_that_start_elsewhere(equality: Any, model: str, verdict: str) -> None:
    check(equality, model, verdict)


def test_M12_is_refused_without_a_proof_too_and_may_answer(equality: Any, tiny: Tiny, tmp_path: Any) -> None:
    equality.make("mixtral, router loss", tmp_path)
    recipe = make_recipe(tiny, server__checkpoint=str(tmp_path), **IDENTITY)
    model = build_server(recipe, str)
    text, image = equality.batch(equality.QUESTIONS["alone"], 32, answers=True)
    with pytest.raises(ModelError, match=r"output_router_logits is true.*set it to false"):
        model.loss(text, {"image": image})
    assert prove(model, recipe, training=False).differences["answers"] <= TOLERANCES["answers"]


@pytest.mark.parametrize("tune", ["full", "lora", "frozen"])
def test_nothing_is_left_of_the_proof(tiny: Tiny, tune: str) -> None:
    recipe = make_recipe(tiny, server__tune=tune, **IDENTITY)
    model = build_server(recipe, str).train()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state, modes = torch.get_rng_state(), [module.training for module in model.modules()]
    proof = prove(model, recipe)
    assert (proof.packs, proof.batches_answers, proof.ways.positions) == (True, True, None)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_model_that_nobody_tried_is_caught(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each of these is a fault that some architecture might bring: the proof has no list of them.
    from transformers import LlamaForCausalLM

    recipe = make_recipe(tiny, **IDENTITY)
    forward = LlamaForCausalLM.forward

    def twisted(change: Any) -> None:
        @wraps(forward)
        def wrapped(self: Any, *args: Any, **given: Any) -> Any:
            return change(self, forward, args, given)

        monkeypatch.setattr(LlamaForCausalLM, "forward", wrapped)

    def prefix(self: Any, forward: Any, args: Any, given: Any) -> Any:  # embeddings are treated otherwise than tokens
        if given.get("inputs_embeds") is not None:
            given["inputs_embeds"] = given["inputs_embeds"] * 1.01
        return forward(self, *args, **given)

    def smooth(self: Any, forward: Any, args: Any, given: Any) -> Any:
        out = forward(self, *args, **given)
        out.loss = None if out.loss is None else out.loss * 1.001
        return out

    def mixes(self: Any, forward: Any, args: Any, given: Any) -> Any:  # rows of a batch see each other
        out = forward(self, *args, **given)
        out.logits = out.logits + 1e-3 * (out.logits - out.logits.mean(0)) * (len(out.logits) > 1)
        return out

    twisted(prefix)
    with pytest.raises(ModelError, match=r"llama, .*cannot be split: fed with embeddings.* [0-9.e-]+ from its own"):
        prove(build_server(recipe, str), recipe)
    twisted(smooth)
    with pytest.raises(ModelError, match="its own loss is not the mean cross-entropy"):
        prove(build_server(recipe, str), recipe)
    twisted(mixes)
    proof = prove(build_server(recipe, str), recipe)
    assert proof.ways.answers == "alone"
    assert "answers together" in str(proof)
    assert proof.differences.keys() == TOLERANCES.keys()
    assert all(size <= TOLERANCES[name] for name, size in proof.differences.items())


def test_the_server_tells_what_it_proved(tiny: Tiny, tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "bitseam"):
        party = ServerParty(make_recipe(tiny, out=str(tmp_path)), str)
    party.compute.shutdown()
    assert party.proof is not None
    assert party.model.ways == party.proof.ways == Ways("packed", answers="together")
    told = [record.message for record in caplog.records if "proven" in record.message]
    assert told == [str(party.proof)]
    assert f"in {party.proof.seconds:.2f} s" in told[0]
