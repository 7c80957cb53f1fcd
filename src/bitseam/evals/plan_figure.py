"""A plan as a picture: every channel on the rate-distortion plane, and bits by channel."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor


def draw_plan(figures: Mapping[str, Mapping[str, Tensor]], path: Path) -> None:
    """figures: of each modality, each (C,), as `plan_report.channels_of` gives them; writes a PNG."""
    figure = Figure(figsize=(11, 4.2 * len(figures)), layout="constrained")
    axes = figure.subplots(len(figures), 2, squeeze=False)
    for (plane, channels), (name, rows) in zip(axes, figures.items(), strict=True):
        kept = (rows["step"] > 0).numpy()
        left = (rows["measured_distortion"] / rows["variance"].clamp_min(1e-30)).numpy()
        bits, bound = rows["measured_bits"].numpy(), rows["shannon_lower_bound"].numpy()
        share = np.geomspace(min(left[kept].min(initial=0.5), 0.5), 1, 100)
        plane.plot(share, -0.5 * np.log2(share), color="black", label="Gaussian R(D)")
        plane.scatter(left[kept], bound[kept], s=6, marker="_", color="tab:gray", label="Shannon lower bound")
        plane.scatter(left[kept], bits[kept], s=8, color="tab:blue", label="measured, a dot a channel")
        plane.set(
            xscale="log", xlabel="squared error, share of the variance", ylabel="bits an element", title=f"{name}, up"
        )
        plane.legend()
        order = np.argsort(-rows["rate"].numpy(), kind="stable")
        channels.plot(rows["fixed_bits"].numpy()[order], ".", color="tab:orange", ms=3, label="fixed rate")
        channels.plot(bits[order], ".", color="tab:blue", ms=3, label="measured")
        channels.plot(rows["rate"].numpy()[order], color="black", label="reverse water-filling")
        channels.set(
            xlabel="channels, by their rate",
            ylabel="bits an element",
            title=f"{name}: {kept.sum()} of {len(kept)} kept",
        )
        channels.legend()
    figure.savefig(path, dpi=120)
