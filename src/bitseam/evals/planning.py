"""Levels for two frozen halves: planned on calibration data, measured on others.

An error in channel c weighs w_c = E[g_c^2], with g the gradient of the loss, summed over a micro-batch, by the features
z of a token: the diagonal of the empirical Fisher information, in the Hessian's place (Amari, 1998; LeCun et al.,
"Optimal brain damage", 1990).

What all errors cost together it does not tell. 0.5 sum w_c D_c was 1.3 to 17 times too low (docs/results): errors of
channels and tokens go together, and at few bits they are not small. So the loss increase that a plan predicts is
measured too, on the calibration data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bitseam.codecs import EntropyUniform
from bitseam.codecs.entropy.uniform import MAX_GROUPS
from bitseam.errors import CodecError, ModelError
from bitseam.models.client import ClientModel
from bitseam.models.server import ServerModel
from bitseam.quant import RDFSQ, LearnedClipFSQ, StepFSQ
from bitseam.quant.planning import ChannelPlan, crossing, plan_channels, symbol_counts
from bitseam.quant.rd_fsq import ProjectingQuantizer
from bitseam.streams.through_codec import ThroughCodec
from bitseam.text.batch import TextBatch

_AFFINE = (ThroughCodec, RDFSQ, StepFSQ, LearnedClipFSQ)
_BITS_NEAR, _LOSS_NEAR = 2e-3, 1e-2  # shares of the targets


@dataclass(frozen=True)
class Sample:
    """A micro-batch: z and gradient by modality, (..., C) on the CPU, before quantization; loss: a sum, nats."""

    text: TextBatch
    z: dict[str, Tensor]
    gradient: dict[str, Tensor]
    loss: float

    @property
    def answers(self) -> int:
        return int(self.text.answers.sum())


class FrozenPair:
    """Both halves in one process, around what the quantizers take: the loss by any z in its place."""

    def __init__(self, client: ClientModel, server: ServerModel) -> None:
        """Raises ModelError for a quantizer whose levels are not z but for scale, shift and rounding."""
        self.client, self.server = client.eval().requires_grad_(False), server.eval().requires_grad_(False)
        for name, sender in client.senders().items():
            if type(sender.quantizer) not in _AFFINE:
                raise ModelError(
                    f"streams.{name}: a plan needs a pair trained with rd-fsq, step-fsq, learned-clip-fsq or no "
                    "quantizer"
                )

    def sample(self, features: Tensor, text: TextBatch) -> Sample:
        """Features (I, M, Dv) and text, as the seam has them."""
        with torch.no_grad():
            carried = self.client.features(features, text)
            z = {name: self._projected(name, x).cpu() for name, x in carried.items()}
        loss, gradient = self.gradients(text, z)
        return Sample(text, z, gradient, loss)

    def _projected(self, name: str, features: Tensor) -> Tensor:
        quantizer = self.client.senders()[name].quantizer
        assert isinstance(quantizer, ProjectingQuantizer)  # see `_AFFINE`
        return quantizer.projected(features)

    def gradients(self, text: TextBatch, z: Mapping[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
        """Loss and its gradient by z."""
        leaves = {name: value.clone().requires_grad_() for name, value in z.items()}
        loss = self._loss(text, leaves)
        loss.backward()
        return float(loss.detach()), {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}

    @torch.no_grad()
    def loss(self, text: TextBatch, z: Mapping[str, Tensor]) -> float:
        """Cross-entropy summed over answer tokens, nats, where the server sees this z (..., C) of each modality."""
        return float(self._loss(text, z))

    def _loss(self, text: TextBatch, z: Mapping[str, Tensor]) -> Tensor:
        levels = {}
        for name, value in z.items():
            value = value.to(next(self.server.parameters()).device)
            # Those that levels on the wire are made with; the server's may be a step older.
            statistics = self.client.senders()[name].quantizer.statistics()
            levels[name] = value if statistics is None else (value - statistics[0]) / statistics[1]
        return self.server.loss(text, levels)


@dataclass(frozen=True)
class Coded:
    """One modality's features at a water level: the plan, and the quantizer and codec that the recipe would build."""

    channels: ChannelPlan
    quantizer: StepFSQ
    codec: EntropyUniform

    def levels(self, z: Tensor) -> Tensor:
        with torch.no_grad():
            return self.quantizer(z).levels

    def decoded(self, levels: Tensor) -> Tensor:
        """What the server takes for z."""
        mean, unit = self.quantizer.statistics()
        return levels * unit + mean


@dataclass(frozen=True)
class UpPlan:
    """Each modality's plan at one water level."""

    theta: float
    coded: dict[str, Coded]

    def decoded(self, sample: Sample) -> dict[str, Tensor]:
        """What the server takes for a sample's z."""
        return {name: coded.decoded(coded.levels(sample.z[name])) for name, coded in self.coded.items()}

    def payload_bits(self, samples: Sequence[Sample], *names: str) -> float:
        """Bits an element of real payloads, of the modalities named, or of all together."""
        size = elements = 0
        for sample in samples:
            for name in names or self.coded:
                levels = self.coded[name].levels(sample.z[name])
                size += len(self.coded[name].codec.encode(levels))
                elements += levels.numel()
        return 8 * size / elements


class UpPlanner:
    """Plans features at any water level.

    batches: how many micro-batches the run will send, which decides how many tables pay.
    """

    def __init__(self, pair: FrozenPair, calibration: Sequence[Sample], batches: int) -> None:
        self.pair, self.calibration, self._batches = pair, calibration, batches
        self._z = {name: tokens(calibration, "z", name) for name in pair.client.senders()}
        self._sensitivity = {
            name: tokens(calibration, "gradient", name).double().square().mean(0) for name in pair.client.senders()
        }

    def at(self, theta: float) -> UpPlan:
        """The plan at a water level."""
        return UpPlan(theta, {name: self._coded(name, theta) for name in self.pair.client.senders()})

    def of_bits(self, bits: float) -> UpPlan:
        """The plan whose payloads take so many bits an element. Raises CodecError where none does."""
        return self._where(lambda plan: plan.payload_bits(self.calibration), bits, _BITS_NEAR)

    def of_loss(self, increase: float) -> UpPlan:
        """The plan that costs the frozen pair so much, in nats an answer token. Raises CodecError where none does."""
        return self._where(lambda plan: loss_increase(self.pair, plan, self.calibration)[0], increase, _LOSS_NEAR)

    def _where(self, value: Callable[[UpPlan], float], target: float, near: float) -> UpPlan:
        return self.at(crossing(lambda theta: value(self.at(theta)), target, *self._range(), near))

    def _range(self) -> tuple[float, float]:
        """Water levels from 16 bits for the most important channel to none for any."""
        most = max(float((self._z[n].double().var(0) * self._sensitivity[n]).max()) for n in self.pair.client.senders())
        if not most > 0:
            raise CodecError(
                "the loss does not feel the features: no gradient reaches them, so there is nothing to plan"
            )
        return most * 2.0**-32, 2 * most

    def _coded(self, name: str, theta: float) -> Coded:
        z = self._z[name]
        channels = plan_channels(z, self._sensitivity[name], theta)
        levels = max(int(channels.levels.max()), 3)
        quantizer = StepFSQ(z.shape[1], z.shape[1], levels, channels.step.tolist()).eval()
        quantizer.calibrate(z)
        elements = self._batches * z.numel() // len(self.calibration)
        with torch.no_grad():
            codes = quantizer(z).levels
        return Coded(channels, quantizer, fitted(codes, levels, elements))


def loss_increase(pair: FrozenPair, plan: UpPlan, samples: Sequence[Sample]) -> tuple[float, float]:
    """Measured, nats an answer token; and its standard error, from how micro-batches differ (a ratio estimate, Cochran,
    "Sampling techniques", 1977), infinite for one."""
    more = np.array([pair.loss(sample.text, plan.decoded(sample)) - sample.loss for sample in samples])
    answers = np.array([sample.answers for sample in samples])
    mean, count = float(more.sum() / answers.sum()), len(samples)
    if count < 2:
        return mean, math.inf
    squares = float(((more - mean * answers) ** 2).sum())
    return mean, math.sqrt(squares * count / (count - 1)) / float(answers.sum())


def fitted(codes: Tensor, levels: int, elements: int) -> EntropyUniform:
    """The codec whose tables, learned from levels (N, C), take the fewest bytes for so many elements, tables too."""
    channels, counts = codes.shape[1], symbol_counts(codes, levels).numpy()
    best, least = EntropyUniform(levels, (levels - 1) / 2), float("inf")
    for groups in sorted({*(2**i for i in range(channels.bit_length())), channels}):
        if groups > MAX_GROUPS:
            break
        codec, of_groups = replace(best, groups=groups, tables=()), np.zeros((groups, levels), np.int64)
        np.add.at(of_groups, codec.group_of(channels), counts)
        codec = codec.learned(of_groups)
        bits = codec.bits(of_groups) / codes.numel() * elements + 8 * len(codec.table_bytes())
        if bits < least:
            best, least = codec, bits
    return best


def tokens(samples: Sequence[Sample], what: str, name: str) -> Tensor:
    """z or gradient of a modality in all samples: (N, C)."""
    return torch.cat([getattr(sample, what)[name].flatten(0, -2) for sample in samples])
