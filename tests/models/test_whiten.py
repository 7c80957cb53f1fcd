"""Whitening of tower features before a fresh connector."""

from __future__ import annotations

import torch

from bitseam.models.vision.half import Whiten


def test_channels_come_out_uncorrelated_and_alike_in_scale() -> None:
    torch.manual_seed(0)
    mixing = (torch.eye(6) + 0.3) * torch.logspace(-2, 2, 6)  # channels correlate at .8
    features = (torch.randn(4096, 6) @ mixing + 5).reshape(256, 8, 12)  # tokens of two patches each
    whiten = Whiten(6)
    whiten.calibrate(features)
    out = whiten(features)
    assert out.shape == features.shape
    covariance = torch.cov(out.reshape(-1, 6).T)
    assert (covariance - covariance.diag().diag()).abs().max() < 0.05
    assert covariance.diag().min() > 0.8
    assert covariance.diag().max() < 1.05
    torch.testing.assert_close(out.reshape(-1, 6).mean(0), torch.zeros(6), atol=1e-3, rtol=0)
    # Each patch by itself: its neighbour in the token changes nothing.
    torch.testing.assert_close(whiten(features[:, :, :6]), out[:, :, :6])


def test_dead_channels_and_few_features_give_no_infinity() -> None:
    features = torch.randn(1, 2, 8)
    features[..., 3] = 7
    whiten = Whiten(8)
    whiten.calibrate(features)
    out = whiten(features)
    assert out.isfinite().all()
    assert out.abs().max() < 10
