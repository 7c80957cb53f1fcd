"""`bitseam plan`: both halves in one process, offline; reads checkpoints and data, prints and writes the plan."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from bitseam import config
from bitseam.api.recipes import locate
from bitseam.cli.machine import circumstances
from bitseam.console import Terminal
from bitseam.data.batches import Batches
from bitseam.data.features import LiveFeatures
from bitseam.data.survey import survey
from bitseam.errors import ConfigError
from bitseam.evals.plan_figure import draw_plan
from bitseam.evals.plan_report import DownPlan, channels_of, rows_of
from bitseam.evals.planning import FrozenPair, Sample, UpPlan, UpPlanner, loss_increase
from bitseam.models.device import choose_device
from bitseam.runs.checkpoint import load_pair
from bitseam.runs.folders import writable
from bitseam.text.prompts import Prompter

stdout = Terminal()
_ESTIMATE = ("nats", "standard_error")
_LEVELS = {
    "group": "channels",
    "variance": "variance",
    "sensitivity": "sensitivity",
    "rate": "R",
    "step": "step",
    "levels": "levels",
    "clip": "clip",
    "dropped": "dropped",
}
_BITS = {
    "group": "channels",
    "fixed_bits": "fixed",
    "predicted_bits": "predicted",
    "measured_bits": "measured",
    "entropy": "entropy",
    "gaussian_rate": "R(D)",
    "shannon_lower_bound": "Shannon",
    "predicted_distortion": "D pred.",
    "measured_distortion": "D meas.",
}


@dataclass(frozen=True)
class Target:
    """One of bits an element of features, and loss increase in nats an answer token; and bits an element of gradients,
    by default as many as the features take."""

    bits: float | None = None
    loss_increase: float | None = None
    gradient_bits: float | None = None

    def __post_init__(self) -> None:
        if (self.bits is None) == (self.loss_increase is None):
            raise ConfigError("give one of --bits and --loss-increase")


def run_plan(recipe: config.Recipe, client: Path, server: Path, target: Target, out: Path, batches: int) -> None:
    """Write OUT/plan.json, plan.png and plan.toml. All is chosen on calibration data; held-out data are measured."""
    writable(out)
    client_model, server_model, trained, identity = load_pair(client, server, locate)
    if (trained.seam.width, list(trained.streams)) != (recipe.seam.width, list(recipe.streams)):
        raise ConfigError(f"seam.width and the streams are not those that {client} was trained with")
    device = choose_device(recipe.device)
    pair = FrozenPair(client_model.to(device), server_model.to(device))
    calibration, held_out = _samples(recipe, pair, Prompter(recipe.text, locate), batches)
    planner = UpPlanner(pair, calibration, recipe.train.steps * recipe.train.accumulate)
    up = planner.of_bits(target.bits) if target.bits is not None else planner.of_loss(target.loss_increase or 0.0)
    bits = up.payload_bits(held_out)
    figures = {name: channels_of(coded, calibration, held_out, name) for name, coded in up.coded.items()}
    down = _down(pair, up, calibration, held_out, target.gradient_bits or bits)
    rows = [row for name in up.coded for row in rows_of(figures[name], name, up.theta)] + down
    predicted, measured = (loss_increase(pair, up, samples) for samples in (calibration, held_out))
    report = {
        **circumstances(recipe.threads or torch.get_num_threads()),
        "recipe": recipe.name,
        "weights": str(identity),
        "target": vars(target),
        "water_level": up.theta,
        "predicted_bits": up.payload_bits(calibration),
        "measured_bits": bits,
        "loss": sum(s.loss for s in held_out) / sum(s.answers for s in held_out),
        "predicted_loss_increase": dict(zip(_ESTIMATE, predicted, strict=True)),
        "measured_loss_increase": dict(zip(_ESTIMATE, measured, strict=True)),
        "totals": {name: _totals(figures[name], up.payload_bits(held_out, name)) for name in up.coded},
        "rows": rows,
        "channels": {n: {key: value.tolist() for key, value in f.items()} for n, f in figures.items()},
    }
    (out / "plan.json").write_text(json.dumps(report, indent=1))
    (out / "plan.toml").write_text(fragment(up, bits, {row["modality"]: row["step"] for row in down}))
    draw_plan(figures, out / "plan.png")
    _show(report)
    stdout.print(f"Wrote {out}/plan.json, plan.png and plan.toml; train with --plan {out}/plan.toml on both sides.")


def fragment(up: UpPlan, bits: float, gradient_steps: Mapping[str, float]) -> str:
    """The plan as tables of a recipe. bits: an element of features, measured."""
    lines = [f"# bitseam plan: {bits:.3f} bits an element of features at the water level {up.theta:.4g}"]
    for name, coded in up.coded.items():
        steps = coded.channels.step.tolist()
        lines += [
            f"[streams.{name}]",
            'quantizer = "step-fsq"',
            f"channels = {len(steps)}",
            f"levels = {coded.codec.levels}",
            f'codec = {{id = "entropy-uniform", groups = {coded.codec.groups}}}',
            f'gradient = {{id = "entropy-stochastic", step = {gradient_steps[name]}}}',
            f"steps = {json.dumps(steps)}",
        ]
    return "\n".join(lines) + "\n"


def _samples(
    recipe: config.Recipe, pair: FrozenPair, prompter: Prompter, count: int
) -> tuple[list[Sample], list[Sample]]:
    """Micro-batches of the training file to calibrate on, and its next ones to measure: what training will send.

    Not those that training calibrated on: the connector's whitening fits them better than others, and features of them
    vary less (by 30 % in the demo).
    """
    found, train = survey(replace(recipe, data=replace(recipe.data, test="")), prompter), recipe.train
    found.settle(recipe.data.bad_rows)
    rows = found.train
    there = len(rows) // train.batch - train.calibrate
    if 2 * count > there:
        raise ConfigError(f"--batches {count}: {recipe.data.train} has {there} micro-batches for both halves of them")
    draw = Batches(rows, LiveFeatures(pair.client.vision), prompter, train.batch, recipe.seed)
    samples = [pair.sample(*draw(train.calibrate + number)) for number in range(2 * count)]
    return samples[:count], samples[count:]


def _down(
    pair: FrozenPair, up: UpPlan, calibration: Sequence[Sample], held_out: Sequence[Sample], bits: float
) -> list[dict[str, Any]]:
    """A row for each modality's gradients, at so many bits an element; held-out ones are of features as they cross."""
    held = [pair.gradients(sample.text, up.decoded(sample))[1] for sample in held_out]
    return [
        DownPlan(
            name,
            coded.quantizer.statistics()[1],
            [sample.gradient[name] for sample in calibration],
            [gradient[name] for gradient in held],
            bits,
        ).row()
        for name, coded in up.coded.items()
    ]


def _totals(figures: Mapping[str, Any], payload_bits: float) -> dict[str, float]:
    """Means over channels; `payload_bits` alone are counted in whole payloads, ends of lanes and all."""
    names = ("predicted_bits", "measured_bits", "entropy", "fixed_bits", "rate", "gaussian_rate", "shannon_lower_bound")
    return {"payload_bits": payload_bits, **{name: float(figures[name].mean()) for name in names}}


def _show(report: Mapping[str, Any]) -> None:
    for (name, direction), rows in groupby(report["rows"], key=lambda row: (row["modality"], row["direction"])):
        kept, level = list(rows), f", water level {report['water_level']:.3g}" if direction == "up" else ""
        for title, columns in ((f"steps and clips in deviations{level}", _LEVELS), ("bits an element", _BITS)):
            table = Table(*columns.values(), title=f"{name} {direction}: {title}")
            for row in kept:
                table.add_row(*(_cell(row.get(key)) for key in columns))
            stdout.print(table)
    for name, totals in report["totals"].items():
        shown = ", ".join(f"{key.replace('_', ' ')} {value:.3f}" for key, value in totals.items())
        stdout.print(f"{name}, up, all channels: {shown}")
    predicted, measured = (
        "{nats:.4f} (standard error {standard_error:.4f})".format(**report[f"{which}_loss_increase"])
        for which in ("predicted", "measured")
    )
    stdout.print(f"Bits an element, predicted {report['predicted_bits']:.3f}, measured {report['measured_bits']:.3f}")
    stdout.print(f"Loss on held-out data {report['loss']:.4f} nats an answer token")
    stdout.print(f"Its increase, predicted {predicted}, measured {measured}")


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "" if value is None else str(value)
