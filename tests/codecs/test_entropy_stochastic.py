import pytest
import torch

from bitseam.codecs import EntropyStochastic, Stochastic
from bitseam.codecs.entropy import stream as entropy_stream
from bitseam.codecs.entropy.stochastic import _tables
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
    widest = max(x.square().mean().sqrt() * step, x.abs().max() / 127) * (1 + 2**-7)
    assert (decoded - x).abs().max() <= widest


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


def test_tokens_whose_gradients_differ_take_far_fewer_bits_than_tokens_alike() -> None:
    x, codec = laplace(8, 16, 256), EntropyStochastic(2)
    scales = 2.0 ** torch.arange(-8, 8)[:, None]
    same, other = (len(codec.encode(each, torch.Generator().manual_seed(0))) for each in (x, x * scales))
    assert other < 0.4 * same


def test_tables_are_those_of_laplacian_values() -> None:
    magnitudes = torch.linspace(0, 40, 400_001, dtype=torch.float64)
    for exponent, table in zip(range(-9, 6), _tables(), strict=True):
        scaled = magnitudes * 2.0**exponent
        for multiple in range(min(len(table) // 2, 20) + 1):
            chance = float(((1 - (scaled - multiple).abs()).clamp(min=0) * (-magnitudes * 2**0.5).exp()).mean())
            chance *= 40 * 2**0.5 / (1 if multiple == 0 else 2)
            assert abs(table[max(2 * multiple - 1, 0)] - 65536 * chance) <= max(50 * 2.0**exponent, 5)
        assert sum(table) == 65536
        assert table[1::2] == table[2::2]


def test_positions_without_a_gradient_cost_next_to_nothing() -> None:
    x, codec = laplace(2, 16, 96), EntropyStochastic(4)
    padded = torch.cat([x[:1], torch.zeros(30, 16, 96), x[1:]])
    alone = EntropyStochastic(1).encode(x, torch.Generator().manual_seed(0))  # the same step: the padded mean is less
    payload = codec.encode(padded, torch.Generator().manual_seed(0))
    assert payload[:2] == alone[:2]
    assert len(payload) - len(alone) <= 40  # for 480 tokens
    decoded = codec.decode(payload, padded.shape)
    assert decoded[0].any()
    assert decoded[-1].any()
    assert not decoded[1:-1].any()


def test_zeros_take_a_step() -> None:
    codec, x = EntropyStochastic(1), torch.zeros(3, 100)
    assert len(codec.encode(x)) == 2
    assert not codec.decode(codec.encode(x), x.shape).any()


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        (b"\0", "within the step"),
        (b"\0" * 3, "1 bytes after zeros"),
        (b"\x80\xff", "a scale"),
        (b"\x80\x3f" + bytes(11), "within the head"),
        (b"\x80\x3f" + bytes(8) + b"\x09\0\0\0" + bytes(8), "within the classes"),
        (b"\x80\x3f" + bytes(8) + b"\x02\0\0\0" + bytes(8), "2 bytes are not"),
        (b"\x80\x3f" + bytes(8) + b"\x04\0\0\0" + b"\1" * 4, "does not end"),
    ],
)
def test_what_no_encoder_makes_is_refused(payload: bytes, complaint: str) -> None:
    with pytest.raises(CodecError, match=complaint):
        EntropyStochastic(1).decode(payload, (2, 3))


def test_numpy_and_constriction_write_and_read_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, x = EntropyStochastic(1), laplace(4, 16, 32) * 2.0 ** torch.arange(-12, 4)[:, None]
    payload = codec.encode(x, torch.Generator().manual_seed(0))
    decoded = codec.decode(payload, x.shape)
    assert len(set(codec.read(payload, x.shape).classes)) > 8
    monkeypatch.setattr(entropy_stream, "constriction", None)
    assert codec.encode(x, torch.Generator().manual_seed(0)) == payload
    assert torch.equal(codec.decode(payload, x.shape), decoded)


@pytest.mark.parametrize("step", [0, 0.01, 2000, float("nan"), "1", True])
def test_a_wrong_step_is_named(step: object) -> None:
    with pytest.raises(CodecError, match="step"):
        EntropyStochastic(step)
