"""The seam alone, inside a PyTorch model: one process and two give the same numbers."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import fields
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from bitseam import Stream, config
from bitseam.api.sent import Sent
from bitseam.api.stream import Keys
from bitseam.codecs import BUILT_IN
from bitseam.config import QuantizerName

WIDTH = 12
IDENTITY: dict[str, Any] = {"quantizer": "none", "codec": "fp32", "gradient": "fp32"}
STEPS = [1.0, 0.5, 0.0, 1.0, 2.0, 1.0]
QUANTIZED: dict[str, dict[str, Any]] = {
    "rd-fsq": {},
    "rd-fsq-tensor": {"levels": 3},
    "tanh-fsq": {"projection": "fixed"},
    "learned-clip-fsq": {"codec": {"id": "entropy-uniform", "groups": 2}},
    "step-fsq": {"steps": STEPS, "codec": {"id": "entropy-uniform", "contexts": 3}},
    "rate-fsq": {"levels": 5, "codec": "entropy-uniform", "rates": [1.0, 2.0], "distortion_weight": 0.01},
}
FLOATS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "fp16": {},
    "bf16": {},
    "fp8": {"format": "e4m3"},
    "blockwise-int": {"bits": 4, "block": 4},
    "nf": {"bits": 4},
    "stochastic": {},
    "entropy-stochastic": {"step": 1.0},
    "one-bit": {},
    "top-k": {"share": 0.25},
    "randomized-top-k": {"share": 0.25},
    "splitfc": {"bits": 4},
}
DELTA = {"id": "delta", "first": "fp16", "inner": {"id": "nf", "bits": 4}, "capacity": 10**6}
FAMILY: dict[str, dict[str, Any]] = {
    name: {"quantizer": name, "channels": 6, "gradient": "entropy-stochastic", **own} for name, own in QUANTIZED.items()
}
FAMILY |= {
    name: {"quantizer": "none", "channels": 6, "codec": {"id": name, **own}, "gradient": {"id": name, **own}}
    for name, own in FLOATS.items()
}
FAMILY |= {"delta": {"quantizer": "none", "codec": DELTA}}
family = pytest.mark.parametrize("keys", list(FAMILY.values()), ids=list(FAMILY))


class Model(nn.Module):
    """A person's own: two ends with a stream between them."""

    def __init__(self, keys: Mapping[str, Any], width: int = WIDTH) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Linear(5, width), nn.GELU())
        self.stream = Stream(width, **keys)
        self.last = nn.Linear(width, 1)


def batch(step: int) -> Tensor:
    """(4, 3, 5), of another scale in each step, so that statistics have to be told again."""
    return torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(step)) * (1 + step)


def numbers(model: Model, step: int) -> list[int]:
    return [0, 1, 2, 3] if model.stream.sender.remembers else []


def in_one(model: Model, steps: int = 3) -> list[Tensor]:
    optimizer, outputs = torch.optim.AdamW(model.parameters(), lr=0.01), []
    for step in range(steps):
        y = model.stream(model.first(batch(step)), samples=numbers(model, step))
        outputs.append(y.detach())
        loss = model.last(y).square().mean() + model.stream.distortion
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return outputs


def in_two(here: Model, there: Model, steps: int = 3) -> tuple[list[Tensor], list[bytes], list[bytes]]:
    """The same through bytes; each side has an optimizer over all that it has."""
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.01) for model in (here, there)]
    outputs, ups, downs = [], [], []
    for step in range(steps):
        ups.append(here.stream.encode(here.first(batch(step)), samples=numbers(here, step)))
        features = there.stream.decode(ups[-1])
        outputs.append(features.detach())
        for optimizer in optimizers:
            optimizer.zero_grad()
        there.last(features).square().mean().backward()
        downs.append(there.stream.encode_gradient(features))
        here.stream.backward(downs[-1], here.stream.distortion)
        for optimizer in optimizers:
            optimizer.step()
    return outputs, ups, downs


@family
def test_one_process_and_two_give_the_same(keys: dict[str, Any]) -> None:
    whole = Model(keys)
    here, there = deepcopy(whole), deepcopy(whole)
    torch.manual_seed(1)
    outputs = in_one(whole)
    torch.manual_seed(1)
    received, ups, downs = in_two(here, there)
    assert all(torch.equal(a, b) for a, b in zip(outputs, received, strict=True))
    for name, value in whole.state_dict().items():
        side = here if name.startswith(("first", "stream.sender", "stream.calibrated")) else there
        assert torch.equal(side.state_dict()[name], value), name
    fp16 = 3 * 2 * 4 * 3 * WIDTH
    sent = Sent(sum(map(len, ups)), sum(map(len, downs)), fp16, fp16)
    assert whole.stream.sent == here.stream.sent == there.stream.sent == sent
    fresh = Model(keys)
    assert not torch.equal(fresh.first[0].weight, whole.first[0].weight)
    assert not torch.equal(fresh.last.weight, whole.last.weight)


@family
def test_evaluation_is_deterministic_and_leaves_all_as_it_was(keys: dict[str, Any]) -> None:
    model = Model(keys)
    in_one(model)
    model.eval()
    with torch.no_grad():
        x = model.first(batch(5))
        model.stream(x)  # the receiving end is told what the last step has made of learned clips
        before = deepcopy(model.state_dict())
        asked = [model.stream(x) for _ in range(3)]
        messages = [model.stream.encode(x) for _ in range(2)]
    assert torch.equal(asked[0], asked[1])
    assert torch.equal(asked[0], asked[2])
    assert len(messages[0]) >= len(messages[1]) == len(model.stream.encode(x))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    alone = model.stream(x[1:2])
    if not {"rd-fsq-tensor", "stochastic", "entropy-stochastic", "one-bit"} & {keys["quantizer"], name_of(keys)}:
        torch.testing.assert_close(alone[0], asked[0][1])


def name_of(keys: Mapping[str, Any]) -> str:
    codec = keys.get("codec", "uniform")
    return codec if isinstance(codec, str) else codec["id"]


def test_the_loops_leave_none_out() -> None:
    assert set(QUANTIZED) == set(get_args(QuantizerName)) - {"none"}
    assert {*FLOATS, "delta"} == set(BUILT_IN) - set(config.GRID_CODECS)
    assert set(Keys.__annotations__) == {field.name for field in fields(config.Stream)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_identity_is_plain_autograd(dtype: torch.dtype) -> None:
    model = Model(IDENTITY)
    plain = deepcopy(model)
    for step in range(2):
        for one, way in ((model, model.stream), (plain, nn.Identity())):
            torch.manual_seed(step)  # a stream that draws nothing leaves PyTorch's numbers to the model
            x = one.first(batch(step)).to(dtype)
            one.last(nn.functional.dropout(way(x).float(), 0.5)).square().sum().backward()
    grads = [[p.grad for p in one.parameters()] for one in (model, plain)]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))  # type: ignore[arg-type]
    assert model.stream.sent.up > model.stream.sent.fp16_up


@pytest.mark.parametrize("codec", ["stochastic", "entropy-stochastic", "one-bit"])
def test_gradients_are_unbiased(codec: str) -> None:
    draws, x = 300, torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(1))

    def gradient(stream: Stream) -> Tensor:
        leaf = x.clone().requires_grad_()
        (stream(leaf) * weight).sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    exact, coded = Stream(WIDTH, gradient="fp32"), Stream(WIDTH, gradient=codec)
    for stream in (exact, coded):
        stream.calibrate(x)
        stream.eval()
    due = gradient(exact)
    torch.manual_seed(0)
    got = torch.stack([gradient(coded) for _ in range(draws)])
    assert (got[0] - due).abs().max() > 0.01
    off = ((got - due).double() * due).flatten(1).sum(1)
    assert off.mean().abs() <= 6 * off.std() / draws**0.5


def test_what_is_sent_is_what_was_measured() -> None:
    stream, other = Stream(WIDTH, channels=6, gradient="fp16"), Stream(WIDTH, channels=6, gradient="fp16")
    x = torch.randn(5, 7, WIDTH)
    stream.calibrate(x)
    assert stream.sent == Sent()
    first, second = stream.encode(x), stream.encode(x)
    assert len(first) > len(second) > 5 * 7 * 6 * 2 / 8  # the first tells the statistics
    features = other.decode(first)
    features.sum().backward()
    back = other.encode_gradient(features)
    assert other.sent == Sent(len(first), len(back), 2 * x.numel(), 2 * x.numel())
    stream.backward(back)
    assert stream.sent == Sent(len(first) + len(second), len(back), 4 * x.numel(), 2 * x.numel())
    assert (stream.sent.total, stream.sent.fp16) == (len(first) + len(second) + len(back), 6 * x.numel())
    assert str(other.sent) == f"{len(first):,} bytes up and {len(back):,} down, of 840 and 840 as fp16"


def test_the_first_batch_of_training_calibrates_and_no_other() -> None:
    x = torch.randn(50, WIDTH) * 3 + 1
    stream = Stream(WIDTH, channels=6)
    assert not stream.calibrated
    stream(x)
    mean = stream.sender.quantizer.statistics()[0]  # type: ignore[index]
    torch.testing.assert_close(mean, stream.sender.quantizer.projected(x).mean(0))  # type: ignore[operator]
    stream(x * 1.01)
    assert torch.equal(stream.sender.quantizer.statistics()[0], mean)  # type: ignore[index]
    assert stream.calibrated
    assert stream.sender.quantizer.training


def test_gradients_gather_over_micro_batches_though_statistics_move_on_between() -> None:
    """All forwards come first: autograd must not see statistics of later batches."""
    together, apart = Model({"gradient": "fp32"}), Model({"gradient": "fp32"})
    for model in (together, apart):
        model.stream.calibrate(model.first(batch(0)).detach())
    means = []
    ys = []
    for step in range(6):
        ys.append(together.last(together.stream(together.first(batch(3 * step)))).sum())
        means.append(together.stream.receiver.projection.mean.clone())
        apart.last(apart.stream(apart.first(batch(3 * step)))).sum().backward()
    torch.stack(ys).sum().backward()
    assert not torch.equal(means[0], means[-1])
    for a, b in zip(together.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_gradients_come_back_in_any_order() -> None:
    x = [torch.randn(4, WIDTH, requires_grad=True) for _ in range(3)]
    here = Stream(WIDTH, channels=6, gradient="fp32")
    there = deepcopy(here)
    messages = [here.encode(one) for one in x]
    features = [there.decode(message) for message in messages]
    backs = {}
    for number in (1, 2, 0):
        (features[number] * (number + 1)).sum().backward()
        backs[number] = there.encode_gradient(features[number])
    for number in (2, 0, 1):
        here.backward(backs[number])
    whole, again = Stream(WIDTH, channels=6, gradient="fp32"), [one.detach().requires_grad_() for one in x]
    torch.stack([(number + 1) * whole(one) for number, one in enumerate(again)]).sum().backward()
    for one, due in zip(x, again, strict=True):
        torch.testing.assert_close(one.grad, due.grad)


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
