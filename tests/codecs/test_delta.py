from itertools import pairwise

import pytest
import torch

from bitseam.codecs import Codec, Delta, Fp16, Fp32, Stochastic, Uniform
from bitseam.codecs.delta import Changes
from bitseam.errors import CodecError, NonFiniteError

SHAPE = (6, 16)
ROOM = 10**6


def features(sample: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1000 * seed + sample))


def ends(inner: Codec, capacity: int = ROOM, first: Codec | None = None) -> tuple[Changes, Changes]:
    first = first or Uniform(4, 1.49)
    codec = Delta(first.config(), inner.config(), capacity)
    return codec.changes(), codec.changes()


def send(sender: Delta, receiver: Delta, sample: int, x: torch.Tensor) -> torch.Tensor:
    return receiver.decode(sample, sender.encode(sample, x, torch.Generator().manual_seed(sample)), tuple(x.shape))


def test_error_shrinks_over_epochs_by_the_contraction_of_the_inner_codec() -> None:
    sender, receiver = ends(Stochastic(4))
    generator, errors = torch.Generator().manual_seed(0), []
    for _ in range(8):
        lost = 0.0
        for sample in range(20):
            x = features(sample)
            lost += float((receiver.decode(sample, sender.encode(sample, x, generator), SHAPE) - x).square().mean())
        errors.append(lost / 20)
    ratios = [after / before for before, after in pairwise(errors)]
    assert max(ratios) < 0.5
    # Rounding at random between levels a step apart costs a sixth of the step squared, where its place is anywhere. A
    # token's step is 2/3 of its largest of 16 values; for what is left after rounding, about 2.2 deviations.
    step = 2 / 3 * 2.2
    assert sum(ratios[1:]) / len(ratios[1:]) == pytest.approx(step**2 / 6, rel=0.25)


def test_every_message_is_smaller_and_better_than_coding_anew() -> None:
    sender, receiver = ends(Stochastic(4), first=Fp16())
    x = features(0)
    first = sender.encode(0, x)
    receiver.decode(0, first, SHAPE)
    drifted = x + 0.05 * features(0, seed=1)
    message = sender.encode(0, drifted)
    assert len(message) == 4 + Stochastic(4).payload_bytes(SHAPE) < len(first) / 3
    anew = Stochastic(4).decode(Stochastic(4).encode(drifted), SHAPE)
    back = receiver.decode(0, message, SHAPE)
    assert (back - drifted).square().mean() < 0.01 * (anew - drifted).square().mean()


@pytest.mark.parametrize("inner", [Stochastic(4), Stochastic(3, 5), Uniform(3, 0.3), Fp16()], ids=str)
def test_both_ends_know_the_same_bits(inner: Codec) -> None:
    sender, receiver = ends(inner)
    for epoch in range(4):
        for sample in (5, 3, 9):
            back = send(sender, receiver, sample, features(sample) + 0.1 * features(sample, epoch + 1))
            assert torch.equal(back, receiver.known(sample))
            assert torch.equal(back, sender.known(sample))
    assert receiver.held == sender.held == 3 * 4 * 96


def test_what_is_handed_out_is_a_copy() -> None:
    sender, receiver = ends(Fp32())
    send(sender, receiver, 0, features(0)).zero_()
    receiver.known(0).zero_()
    assert receiver.known(0).abs().sum() > 0


def test_memory_is_bounded_and_first_come_first_kept() -> None:
    sender, receiver = ends(Fp32(), capacity=2 * 4 * 96 + 100, first=Uniform(4, 1.49))
    for _ in range(2):
        backs = [send(sender, receiver, sample, features(sample)) for sample in range(4)]
    for end in (sender, receiver):
        assert end.held == 2 * 4 * 96
        assert [end.known(sample) is not None for sample in range(4)] == [True, True, False, False]
    assert [torch.allclose(back, features(i), atol=1e-6) for i, back in enumerate(backs)] == [True, True, False, False]
    assert send(sender, receiver, 7, torch.ones(25)).shape == (25,)  # a smaller one still fits
    assert sender.held == receiver.held == 2 * 4 * 96 + 100


def test_no_memory_is_the_first_codec() -> None:
    sender, receiver = ends(Stochastic(4), capacity=0)
    for _ in range(2):
        back = send(sender, receiver, 0, features(0))
        assert torch.equal(back, Uniform(4, 1.49).decode(Uniform(4, 1.49).encode(features(0)), SHAPE))


@pytest.mark.parametrize("fault", ["lost", "twice", "forgotten", "short"])
def test_ends_that_differ_are_refused_and_keep_what_they_had(fault: str) -> None:
    sender, receiver = ends(Stochastic(4))
    send(sender, receiver, 0, features(0))
    message = sender.encode(0, features(0))
    if fault == "lost":
        message = sender.encode(0, features(0))
    if fault == "twice":
        receiver.decode(0, message, SHAPE)
    if fault == "forgotten":
        receiver = ends(Stochastic(4))[1]
    before = receiver.known(0)
    with pytest.raises(CodecError, match=r"sample 0: visit \d came, \d is due"):
        receiver.decode(0, message[:3] if fault == "short" else message, SHAPE)
    after = receiver.known(0)
    assert (before is None and after is None) or torch.equal(before, after)


def test_a_message_that_fails_changes_nothing() -> None:
    sender, receiver = ends(Stochastic(4))
    send(sender, receiver, 0, features(0))
    message = sender.encode(0, features(0))
    with pytest.raises(CodecError, match="bytes"):
        receiver.decode(0, message + b"\0", SHAPE)
    assert torch.equal(receiver.decode(0, message, SHAPE), sender.known(0))
    with pytest.raises(NonFiniteError):
        sender.encode(0, features(0) / 0)
    send(sender, receiver, 0, features(0))


def test_differences_that_add_up_to_infinity_are_refused() -> None:
    sender, receiver = ends(Fp32(), first=Fp32())
    big = torch.full((2,), 3e38)
    send(sender, receiver, 0, big)
    with pytest.raises(NonFiniteError, match="sample 0"):
        receiver.decode(0, (1).to_bytes(4, "little") + Fp32().encode(big), (2,))
    assert torch.equal(receiver.known(0), big)


def test_another_shape_is_refused_on_either_end() -> None:
    sender, receiver = ends(Stochastic(4))
    send(sender, receiver, 0, features(0))
    with pytest.raises(CodecError, match=r"sample 0 has shape \(2, 8\), and had \(6, 16\)"):
        sender.encode(0, torch.zeros(2, 8))
    with pytest.raises(CodecError, match="shape"):
        receiver.decode(0, b"", (2, 8))


def test_a_negative_capacity_is_refused() -> None:
    with pytest.raises(CodecError, match="capacity"):
        Delta("fp32", "fp32", -1)


def test_an_end_that_goes_on_knows_what_it_knew() -> None:
    sender, receiver = ends(Stochastic(4), capacity=2 * 4 * 96 + 100)
    for sample in (5, 3, 5, 7):
        send(sender, receiver, sample, features(sample))
    state = {name: value.clone() for name, value in receiver.state().items()}
    assert state["samples"].tolist() == [5, 3]
    assert state["visits"].tolist() == [2, 1]
    assert torch.equal(state["values"], torch.stack([receiver.known(5), receiver.known(3)]))
    other = ends(Stochastic(4), capacity=2 * 4 * 96 + 100)[0]
    other.encode(9, features(9))
    other.restore(state)
    assert other.known(9) is None
    assert other.held == 2 * 4 * 96
    state["values"].zero_()  # what was restored is a copy
    assert torch.equal(send(sender, other, 5, features(5)), sender.known(5))
    assert send(sender, other, 8, torch.ones(25)).shape == (25,)
    assert other.held == 2 * 4 * 96 + 100


def test_an_end_that_knows_nothing_goes_on_as_one() -> None:
    sender, receiver = ends(Stochastic(4))
    state = sender.state()
    assert [value.dtype for value in state.values()] == [torch.int64, torch.int64, torch.float32]
    assert not any(value.numel() for value in state.values())
    send(sender, receiver, 0, features(0))
    receiver.restore(state)
    assert receiver.known(0) is None
    assert receiver.held == 0


def test_the_length_of_a_message_is_known_before() -> None:
    sender, receiver = ends(Stochastic(4), first=Fp16())
    for _ in range(2):
        due = receiver.message_bytes(0, SHAPE)
        message = sender.encode(0, features(0))
        assert len(message) == due
        receiver.decode(0, message, SHAPE)
    assert due == 4 + Stochastic(4).payload_bytes(SHAPE)


def test_what_the_codecs_draw_is_the_generators() -> None:
    def message(seed: int) -> bytes:
        end, _ = ends(Stochastic(4))
        end.encode(0, features(0))
        return end.encode(0, features(1), torch.Generator().manual_seed(seed))

    assert message(1) == message(1) != message(2)


def test_samples_without_values_cross() -> None:
    sender, receiver = ends(Fp32())
    for _ in range(2):
        assert send(sender, receiver, 0, torch.zeros(0)).shape == (0,)


@pytest.mark.parametrize(
    ("first", "inner", "shape", "due"),
    [
        ("fp16", "fp8", (5, 4, 6), 5 * (4 + 48)),
        ("fp8", "fp16", (5, 4, 6), 5 * (4 + 48)),
        ("fp32", "fp16", (), 4),
        ("fp32", "fp16", (0, 7), 0),
    ],
)
def test_the_most_bytes_are_of_messages_of_each_sample(
    first: str, inner: str, shape: tuple[int, ...], due: int
) -> None:
    parts = [{"id": name} | ({"format": "e4m3"} if name == "fp8" else {}) for name in (first, inner)]
    assert Delta(*parts, ROOM).payload_bytes(shape) == due


@pytest.mark.parametrize("part", ["first", "inner"])
def test_parts_have_a_fixed_length_and_are_codecs(part: str) -> None:
    whole = {"first": "fp16", "inner": "fp16", "capacity": 0}
    with pytest.raises(
        CodecError, match=f"^{part}: the length of codec entropy-stochastic is not decided by the shape"
    ):
        Delta(**whole | {part: "entropy-stochastic"})
    with pytest.raises(CodecError, match=f"^{part} must be a codec's id or its configuration, not 3$"):
        Delta(**whole | {part: 3})
    assert Delta(**whole).capacity == 0
    with pytest.raises(CodecError, match="capacity"):
        Delta(**whole | {"capacity": True})
