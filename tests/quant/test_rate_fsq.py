"""RateFSQ: principal directions, one step for all, and what the tables charge in the loss."""

import pytest
import torch

from bitseam.codecs import EntropyUniform
from bitseam.errors import CodecError, NonFiniteError
from bitseam.quant import LevelProjection, RateFSQ

WIDTH, LEVELS, CLIP = 12, 31, 7.5  # a step of half a deviation


def mixing(seed: int) -> torch.Tensor:
    """(3, WIDTH): three hidden values in each token, of unlike strength."""
    drawn = torch.randn(WIDTH, 3, generator=torch.Generator().manual_seed(seed))
    return torch.diag(torch.tensor([4.0, 2.0, 1.0])) @ torch.linalg.qr(drawn)[0].T


def features(tokens: int = 2000, seed: int = 0, mixed: int = 0) -> torch.Tensor:
    """(tokens, WIDTH): three directions and a little noise."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, 3, generator=generator) @ mixing(mixed)
    return hidden + 0.05 * torch.randn(tokens, WIDTH, generator=generator) + torch.arange(WIDTH)


def calibrated(clip: float = CLIP) -> RateFSQ:
    quantizer = RateFSQ(WIDTH, WIDTH, LEVELS, clip)
    quantizer.calibrate(features())
    return quantizer


def priced(quantizer: RateFSQ, clip: float = CLIP) -> EntropyUniform:
    """Have the quantizer charge what tables learned from its own levels do, and give their codec."""
    codec = EntropyUniform(LEVELS, clip, groups=WIDTH)
    quantizer.use(clip, codec.prices(WIDTH))
    codec = codec.learned(codec.counts(quantizer.eval()(features()).levels))
    quantizer.use(clip, codec.prices(WIDTH))
    return codec


def test_told_bits_are_what_codes_take() -> None:
    quantizer = calibrated()
    codec = priced(quantizer)
    quantized = quantizer(features(4000, seed=1))
    bits = quantized.distortion.item() * quantized.levels.numel()
    assert bits == pytest.approx(codec.bits(codec.counts(quantized.levels)), rel=1e-5)
    assert bits == pytest.approx(8 * len(codec.encode(quantized.levels)), rel=0.02)


def test_told_bits_are_by_the_contexts_that_code_images() -> None:
    quantizer, whole = calibrated(), features(600, seed=1)[:, None]
    tokens = 0.9 * (whole - whole.mean(0)) + 0.3 * features(600 * 9, seed=2).reshape(600, 9, WIDTH)
    codec = EntropyUniform(LEVELS, CLIP, groups=WIDTH, contexts=5)
    codec = codec.learned(codec.counts(quantizer.eval()(tokens).levels))
    quantizer.use(CLIP, codec.prices(WIDTH))
    quantized = quantizer(tokens.requires_grad_())
    bits = quantized.distortion.item() * quantized.levels.numel()
    assert bits == pytest.approx(codec.bits(codec.counts(quantized.levels)), rel=1e-5)
    assert bits == pytest.approx(8 * len(codec.encode(quantized.levels)), rel=0.02)
    apart = quantizer(tokens.reshape(-1, WIDTH))  # of no image, so each in the middle context
    assert apart.distortion > 1.1 * quantized.distortion
    assert not torch.equal(
        *(torch.autograd.grad(told.distortion, tokens, retain_graph=True)[0] for told in (quantized, apart))
    )


def test_the_server_undoes_rotation_scale_and_mean() -> None:
    quantizer, x = calibrated().eval(), features(seed=1)
    projection = LevelProjection(WIDTH, WIDTH, rotated=True)
    projection.calibrate(*quantizer.statistics())
    projection.rotate(quantizer.rotation().flatten())
    step = 2 * CLIP / (LEVELS - 1) * float(quantizer.statistics()[1][0])
    error = (projection(quantizer(x).levels) - x).square().mean()
    # Three components carry the noise of a step; of the others the noise of the features is lost.
    assert error < 1.2 * (3 / WIDTH * step**2 / 12 + 0.05**2)


def test_bits_follow_the_rank_of_the_features_not_their_channels() -> None:
    quantizer = calibrated().eval()
    used = (quantizer(features(seed=1)).levels != 0).float().mean(0)
    assert used[:3].min() > 0.3
    assert used[3:].max() < 1e-3
    assert (used[:3].diff() < 0).all()  # strongest first


def test_wider_steps_take_fewer_bits() -> None:
    quantizer = calibrated()
    sizes = {}
    for clip in (CLIP, 2 * CLIP, 4 * CLIP):
        codec = priced(quantizer, clip)
        quantized = quantizer(features(seed=1))
        assert torch.equal(codec.decode(codec.encode(quantized.levels), quantized.levels.shape), quantized.levels)
        sizes[clip] = len(codec.encode(quantized.levels))
    # A bit less for each component that is still heard.
    assert sizes[CLIP] - sizes[2 * CLIP] == pytest.approx(3 * 2000 / 8, rel=0.2)
    assert sizes[4 * CLIP] < sizes[2 * CLIP]


def test_levels_are_those_of_the_components_and_their_gradient_ends_at_the_clip() -> None:
    quantizer = calibrated(clip=1.0).eval()
    x = features(seed=1).requires_grad_()
    levels = quantizer(x).levels
    mean, scale = quantizer.statistics()
    assert scale.shape == (WIDTH,)
    turn = quantizer.rotation().float() / 127
    components = ((x - mean) @ turn / scale).detach()
    table = torch.linspace(-1, 1, LEVELS)
    nearest = table[(components[..., None] - table).abs().argmin(-1)]
    torch.testing.assert_close(levels, nearest, rtol=0, atol=1e-6)
    inside = components.abs() <= 1
    assert 0.01 < (~inside).float().mean() < 0.5
    weight = torch.randn(levels.shape, generator=torch.Generator().manual_seed(1))
    levels.backward(weight)
    torch.testing.assert_close(x.grad, (weight * inside / scale) @ turn.T, rtol=1e-4, atol=1e-5)


def test_the_rate_is_the_price_of_the_levels_with_the_slope_between_them() -> None:
    quantizer = RateFSQ(3, 3, 5, 3.0)
    corners = torch.tensor([[3.0, 0, 0], [-3, 0, 0], [0, 2, 0], [0, -2, 0], [0, 0, 1], [0, 0, -1]])
    quantizer.calibrate(corners)
    prices = torch.tensor([[9.0, 4, 1, 2, 7], [5, 3, 1, 3.5, 8], [2, 2.5, 0.5, 6, 6.5]])
    quantizer.use(3.0, prices[:, None].double())
    steps = torch.tensor([[0.3, -1.7, 0.2], [-0.4, 0.9, -0.6], [1.6, 5.0, -7.0], [-1.2, -0.1, 1.999], [2.6, -2.7, 2.8]])
    scale, turn = quantizer.statistics()[1][0] * 1.5, quantizer.rotation().float() / 127
    x = (steps * scale) @ turn.T
    x.requires_grad_()
    told = quantizer.eval()(x).distortion
    nearest, channel = (steps.round().clamp(-2, 2) + 2).long(), torch.arange(3)
    assert told.item() == pytest.approx(float(prices[channel, nearest].mean()))
    told.backward()
    below = (steps.floor().clamp(-2, 1) + 2).long()
    slope = (prices[channel, below + 1] - prices[channel, below]) * (steps.abs() <= 2) / steps.numel()
    # Steps are divided by their root mean square, which is held constant: nothing is left along them.
    slope -= steps * (slope * steps).sum() / steps.square().sum()
    torch.testing.assert_close(x.grad, (slope / scale) @ turn.T, rtol=1e-4, atol=1e-5)


def test_the_rate_of_one_element_is_its_price() -> None:
    quantizer = RateFSQ(1, 1, 3, 1.0)
    quantizer.calibrate(torch.tensor([[-1.0], [1.0]]))
    quantizer.use(1.0, torch.tensor([[[2.0, 1.0, 3.0]]]))
    assert [quantizer.eval()(torch.tensor([x])).distortion.item() for x in (-9.0, 0.1, 9.0)] == [2, 1, 3]


def test_what_is_in_use_goes_out_to_the_clip() -> None:
    quantizer = calibrated()
    assert quantizer.principal.step == pytest.approx(2 * CLIP / (LEVELS - 1))
    quantizer.use(4.0, torch.zeros(WIDTH, 1, LEVELS))
    assert quantizer.eval()(features() * 1e3).levels.abs().amax() == 4
    for clip in (0.0, 2e6):
        with pytest.raises(CodecError, match="clip"):
            quantizer.use(clip, torch.zeros(WIDTH, 1, LEVELS))
    assert quantizer.clip == 4.0


def test_a_fresh_one_charges_nothing() -> None:
    quantizer = RateFSQ(WIDTH, 5, LEVELS, CLIP)
    quantizer.calibrate(features())
    assert quantizer(features()).distortion == 0
    assert quantizer(features(0)).distortion == 0  # and nothing for nothing
    with pytest.raises(CodecError, match="not calibrated"):
        RateFSQ(WIDTH, 5, LEVELS, CLIP).statistics()


def test_projected_features_are_finite() -> None:
    quantizer, x = calibrated(), features(5)
    with torch.no_grad():
        quantizer.project.weight[0, 0] = float("nan")
    for refused in (quantizer, quantizer.projected, quantizer.calibrate):
        with pytest.raises(NonFiniteError, match="projected features"):
            refused(x)


def test_rate_has_no_gradient_by_the_scale_of_the_features() -> None:
    quantizer = calibrated()
    priced(quantizer)
    x = features(seed=1).requires_grad_()
    quantizer(x).distortion.backward()
    along = (x.grad * (x.detach() - quantizer.statistics()[0])).sum()
    assert x.grad.abs().sum() > 0
    assert along.abs() < 1e-3 * x.grad.norm() * x.detach().norm()


def test_learning_for_the_rate_alone_concentrates_the_features() -> None:
    quantizer = calibrated()
    before = None
    optimizer = torch.optim.Adam(quantizer.parameters(), 0.02)
    for step in range(120):
        if step % 20 == 0:
            quantizer.calibrate(features())
            priced(quantizer)
            quantizer.train()
        loss = quantizer(features(500, seed=step + 1)).distortion
        before = before or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    quantizer.calibrate(features())
    priced(quantizer)
    assert quantizer(features(seed=1)).distortion < 0.87 * before


def test_the_rotation_follows_features_that_turn_and_rests_where_they_do_not() -> None:
    quantizer = calibrated().train()
    first = quantizer.rotation()
    for seed in range(40):
        quantizer(features(200, seed))
    assert torch.equal(quantizer.rotation(), first)
    seen = set()
    for seed in range(120):
        quantizer(features(400, seed, mixed=1))
        seen.add(quantizer.rotation().numpy().tobytes())
    assert 2 <= len(seen) <= 6
    used = (quantizer.eval()(features(seed=99, mixed=1)).levels != 0).float().mean(0)
    assert used[3:].max() < 0.02
    kept = quantizer.rotation()
    for seed in range(60):
        quantizer(features(200, seed))
    assert torch.equal(quantizer.rotation(), kept)  # eval counts nothing


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(CodecError, match="odd number of levels, not 4"):
        RateFSQ(WIDTH, WIDTH, 4, CLIP)
    with pytest.raises(CodecError, match="levels must be"):
        RateFSQ(WIDTH, WIDTH, 1, CLIP)
    with pytest.raises(CodecError, match="not calibrated"):
        RateFSQ(WIDTH, WIDTH, LEVELS, CLIP)(features())
    with pytest.raises(CodecError, match="two tokens"):
        RateFSQ(WIDTH, WIDTH, LEVELS, CLIP).calibrate(features(1))
    with pytest.raises(CodecError, match=r"prices of shape \(12, 3\), not"):
        calibrated().use(CLIP, torch.zeros(WIDTH, 3))
    with pytest.raises(CodecError, match=r"prices of shape \(12, 1, 3\), not \(12, 'contexts', 31\)"):
        calibrated().use(CLIP, torch.zeros(WIDTH, 1, 3))
    with pytest.raises(CodecError, match="contexts must be an odd number"):
        calibrated().use(CLIP, torch.zeros(WIDTH, 2, LEVELS))
    with pytest.raises(CodecError, match="rotation of 9 numbers, not 144"):
        LevelProjection(WIDTH, WIDTH, rotated=True).rotate(torch.zeros(9, dtype=torch.int8))
    with pytest.raises(CodecError, match="quantizer that has none"):
        LevelProjection(WIDTH, WIDTH).rotate(torch.zeros(144, dtype=torch.int8))
