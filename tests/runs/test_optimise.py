"""The optimiser of either half: what decays, and going on."""

from __future__ import annotations

import pytest
import torch
from conftest import Tiny, make_recipe
from torch import nn

from bitseam import config
from bitseam.errors import ModelError
from bitseam.runs import resume
from bitseam.runs.checkpoint import build_client, build_server
from bitseam.runs.optimise import Stepper
from bitseam.runs.resume import resume_training, training_state

TRAIN = config.Train(steps=20, batch=1, warmup=0.1, weight_decay=0.5)


def built(side: str, tiny: Tiny) -> nn.Module:
    recipe = make_recipe(tiny, client__tune_vision=True)
    return {"client": build_client, "server": build_server}[side](recipe, str)


@pytest.mark.parametrize("side", ["client", "server"])
def test_M19_decay_acts_on_matrices_alone(side: str, tiny: Tiny) -> None:
    model = built(side, tiny)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    stepper = Stepper(model, 1e-2, TRAIN)
    for _ in range(4):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        stepper.step(1)
    after = dict(model.named_parameters())
    assert any(p.ndim < 2 for p in after.values())
    for name, p in after.items():
        ratio = (p.norm() / before[name].norm()).nan_to_num(1.0)
        assert (ratio < 1) == (p.ndim >= 2 and bool(before[name].any())), name


def test_M19_a_recipe_without_decay_is_as_it_was(tiny: Tiny) -> None:
    """One group or two, the same steps to the bit."""
    models = [built("client", tiny) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    plain = config.Train(steps=20, batch=1, warmup=0.1, weight_decay=0.0)
    stepper = Stepper(models[0], 1e-2, plain)
    single = torch.optim.AdamW(models[1].parameters(), lr=0.0, weight_decay=0.0, fused=True)
    for step in range(4):
        for one, other in zip(*(model.parameters() for model in models), strict=True):
            one.grad = torch.randn(one.shape, generator=torch.Generator().manual_seed(step)) * 1e-4
            other.grad = one.grad.clone()
        single.param_groups[0]["lr"] = stepper.rate
        stepper.step(1)
        single.step()
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, other)


class Mixed(nn.Module):
    """Vectors before, between and after matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2, bias=False))
        self.scale = nn.Parameter(torch.ones(2))


def steps(model: nn.Module, stepper: Stepper, first: int, last: int) -> None:
    for step in range(first, last):
        x = torch.randn(5, 4, generator=torch.Generator().manual_seed(step))
        (model.layers(x) * model.scale).square().sum().backward()
        stepper.step(5)


def test_M19_a_resumed_run_is_the_same_to_the_bit() -> None:
    torch.manual_seed(0)
    straight, broken = Mixed(), Mixed()
    broken.load_state_dict(straight.state_dict())
    first = Stepper(straight, 1e-2, TRAIN)
    steps(straight, first, 0, 8)
    second = Stepper(broken, 1e-2, TRAIN)
    steps(broken, second, 0, 3)
    kept, weights = training_state(second), {k: v.clone() for k, v in broken.state_dict().items()}
    again = Mixed()
    again.load_state_dict(weights)
    third = Stepper(again, 1e-2, TRAIN)
    resume_training(kept, third)
    steps(again, third, 3, 8)
    for name, tensor in straight.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    moments = third.state()
    for name, p in again.named_parameters():
        assert moments[f"{name}/exp_avg"].shape == p.shape
    for name, tensor in first.state().items():
        assert torch.equal(moments[name], tensor), name


@pytest.mark.parametrize("frozen", ["vectors", "matrices", "all"])
def test_M19_halves_with_one_kind_of_parameter_train(frozen: str) -> None:
    model = Mixed()
    for p in model.parameters():
        p.requires_grad_(frozen != "all" and (p.ndim >= 2) == (frozen == "vectors"))
    stepper = Stepper(model, 1e-2, TRAIN)
    for step in range(2):
        if frozen != "all":
            steps(model, stepper, step, step + 1)
        else:
            stepper.step(1)
    stepper.restore(stepper.state())
    assert stepper.schedule.last_epoch == 2


def test_a_run_of_a_cpu_goes_on_on_a_gpu_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """No machine of the tests has a GPU: what torch would be asked is looked at instead."""
    asked = []
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, i: asked.append((i, state)))
    here = torch.arange(16, dtype=torch.uint8)
    model = Mixed()
    stepper = Stepper(model, 1e-2, TRAIN)
    steps(model, stepper, 0, 1)
    of_cpu = training_state(stepper)
    monkeypatch.setattr(resume, "_cuda_random_states", lambda: [here])
    resume_training(of_cpu, stepper)
    assert asked == []
    of_gpu = training_state(stepper)
    resume_training(of_gpu, stepper)
    assert [i for i, state in asked if torch.equal(state, here)] == [0]
    monkeypatch.setattr(resume, "_cuda_random_states", list)
    resume_training(of_gpu, stepper)
    assert len(asked) == 1
    with pytest.raises(ModelError, match=r"training.safetensors does not fit"):
        resume_training({name: value for name, value in of_cpu.items() if name != "random.cpu"}, stepper)
