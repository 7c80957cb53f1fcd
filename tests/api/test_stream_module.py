"""A stream as a part of a PyTorch model: saved, copied, cast, compiled, moved."""

from __future__ import annotations

import io
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from stream_models import (
    WIDTH,
    Model,
    batch,
    family,
    in_one,
)
from torch import nn

from bitseam import Stream


@family
def test_a_loaded_stream_decodes_what_its_pair_encodes(keys: dict[str, Any]) -> None:
    model = Model(keys)
    in_one(model)
    file = io.BytesIO()
    torch.save(model.stream.state_dict(), file)
    file.seek(0)
    loaded = Stream(WIDTH, **keys)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    x = model.first(batch(7)).detach()
    model.eval()
    y = model.stream(x)
    assert torch.equal(loaded.decode(model.stream.encode(x)), y)
    assert torch.equal(loaded.eval()(x), y)
    fresh = Stream(WIDTH, **keys).eval()
    model.stream.retell()
    with torch.no_grad():
        for own, trained in zip(fresh.receiver.parameters(), model.stream.receiver.parameters(), strict=True):
            own.copy_(trained)
    assert torch.equal(fresh.decode(model.stream.encode(x)), y)  # the message tells all the rest


def copied(model: Model) -> Model:
    return deepcopy(model)


def saved(model: Model) -> Model:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copy", [copied, saved])
def test_a_copy_goes_on_alone(copy: Callable[[Model], Model]) -> None:
    model = Model({"codec": "entropy-uniform"})
    in_one(model)
    x = model.first(batch(1))
    message = model.stream.encode(x)
    other = copy(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for one in (other, other):
        in_one(one)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not torch.equal(other.last.weight, model.last.weight)
    features = model.stream.decode(message)
    features.sum().backward()
    back = model.stream.encode_gradient(features)
    model.stream.backward(back)  # what was under way stays with the one that it is of


def test_casts_of_the_model_and_autocast_leave_the_stream_in_float32() -> None:
    model = Model({"channels": 6})
    in_one(model)
    model.eval()
    x = torch.randn(3, WIDTH).bfloat16()
    plain = model.stream(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.stream(x), plain.bfloat16())
        assert torch.equal(model.stream(x.float()), plain)
    kept = deepcopy(model.stream.state_dict())
    model.bfloat16()
    assert model.last.weight.dtype == torch.bfloat16
    assert torch.equal(model.stream(x), plain.bfloat16())
    model.double()
    assert torch.equal(model.stream(x.double()), plain.double())
    assert all(torch.equal(value, kept[name]) for name, value in model.stream.state_dict().items())
    assert str(model.to("meta").stream.calibrated.device) == "meta"


def test_inference_mode_and_compiled_models() -> None:
    model = Model({"channels": 6})
    with torch.inference_mode():
        model.stream(model.first(batch(0)))  # in training mode: calibrates
        model.stream(model.first(batch(9)))
    in_one(model)
    sequence = nn.Sequential(model.first, model.stream, model.last).eval()
    due = sequence(batch(1))
    assert torch.equal(torch.compile(sequence, backend="eager")(batch(1)), due)


@pytest.mark.parametrize("leading", [(), (0,), (1,), (0, 3), (2, 3, 4)])
def test_any_leading_dimensions(leading: tuple[int, ...]) -> None:
    stream = Stream(WIDTH, channels=6)
    stream.calibrate(torch.randn(9, WIDTH))
    x = torch.randn(*leading, WIDTH, requires_grad=True)
    y = stream(x)
    y.sum().backward()
    assert y.shape == x.shape
    assert x.grad is not None
    assert x.grad.shape == x.shape


def test_it_says_what_it_is() -> None:
    assert repr(Stream(WIDTH, "eyes", channels=6, levels=3)).splitlines()[1] == "  12, 'eyes', channels=6, levels=3"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@family
def test_on_a_gpu_as_on_a_cpu(keys: dict[str, Any]) -> None:
    model = Model(keys)
    in_one(model)
    model.eval()
    x = model.first(batch(1)).detach()
    model.stream.cuda()
    y = model.stream(x.cuda())
    assert y.is_cuda
    message = model.stream.encode(x.cuda())
    assert torch.equal(model.stream.decode(message), y)
