import numpy as np
import pytest
import torch

from bitseam.codecs import EntropyStochastic, Stochastic
from bitseam.errors import CodecError

STEPS = [0.05, 0.5, 2.0, 8.0]


def laplace(*shape: int) -> torch.Tensor:
    """Unit variance, scaled down as gradients are."""
    signs = torch.rand(shape, generator=torch.Generator().manual_seed(3)) - 0.5
    return -signs.sign() * (1 - 2 * signs.abs()).log() / 2**0.5 * 1e-5


@pytest.mark.parametrize("step", STEPS)
def test_unbiased(step: float) -> None:
    codec, draws, x = EntropyStochastic(step), 4000, laplace(4, 9)
    generator = torch.Generator().manual_seed(0)
    decoded = torch.stack([codec.decode(codec.encode(x, generator), x.shape) for _ in range(draws)]).double()
    deviation = decoded.std(dim=0) / draws**0.5
    assert ((decoded.mean(dim=0) - x).abs() <= 4 * deviation + 1e-6 * x.abs().max()).all()
    assert codec.unbiased


@pytest.mark.parametrize("step", STEPS)
def test_rounds_to_one_of_the_two_neighbours(step: float) -> None:
    x = laplace(3, 8, 50)
    codec = EntropyStochastic(step)
    decoded = codec.decode(codec.encode(x), x.shape)
    # A step is in root mean squares, or a 127th of the largest value, and rounded up to bfloat16.
    power = x.square().mean(dim=(1, 2)).sqrt() * step
    widest = torch.maximum(power, x.abs().amax(dim=(1, 2)) / 127) * (1 + 2**-7)
    assert ((decoded - x).abs().amax(dim=(1, 2)) <= widest).all()


def test_bits_fall_with_the_step_and_the_noise_is_less_than_with_a_token_s_largest_value() -> None:
    x = laplace(8, 16, 256)

    def measure(codec: EntropyStochastic | Stochastic) -> tuple[float, float]:
        payload = codec.encode(x, torch.Generator().manual_seed(0))
        error = (codec.decode(payload, x.shape) - x).square().mean() / x.square().mean()
        return 8 * len(payload) / x.numel(), float(error)

    rates = [measure(EntropyStochastic(step)) for step in (1, 2, 4, 16)]
    for (bits, noise), (most_bits, most_noise) in zip(
        rates, [(2.15, 0.18), (1.42, 0.63), (0.91, 2.0), (0.36, 11)], strict=True
    ):
        assert bits < most_bits
        assert noise < most_noise
    bits, noise = measure(Stochastic(3))
    assert rates[1][0] < bits
    assert rates[1][1] < noise / 3


def test_items_are_independent() -> None:
    x = laplace(2, 16, 8)
    louder = x.clone()
    louder[1] *= 1000
    codec = EntropyStochastic(1)
    one, other = (codec.decode(codec.encode(each, torch.Generator().manual_seed(0)), x.shape) for each in (x, louder))
    assert torch.equal(one[0], other[0])


def test_zeros_take_a_step_each_and_a_byte() -> None:
    codec, x = EntropyStochastic(1), torch.zeros(3, 100)
    assert len(codec.encode(x)) == 7
    assert not codec.decode(codec.encode(x), x.shape).any()


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        (b"\0" * 4, "within the steps"),
        (b"\0" * 4 + b"\x80", "a reach of 128"),
        (b"\0" * 5 + b"x", "1 bytes after zeros"),
        (b"\0" * 4 + b"\1" + bytes(5), "within the table"),
        (b"\0" * 4 + b"\1" + np.array([1, 1, 1], "<u2").tobytes(), "sum to 65536"),
        (b"\x80\xff" * 2 + b"\0", "a scale"),
    ],
)
def test_what_no_encoder_makes_is_refused(payload: bytes, complaint: str) -> None:
    with pytest.raises(CodecError, match=complaint):
        EntropyStochastic(1).decode(payload, (2, 3))


@pytest.mark.parametrize("step", [0, 0.01, 2000, float("nan"), "1", True])
def test_a_wrong_step_is_named(step: object) -> None:
    with pytest.raises(CodecError, match="step"):
        EntropyStochastic(step)
