"""Levels for two frozen halves: what crosses is drawn from data, planned, and measured on data held out.

The loss increase that a plan predicts is of second order, with the diagonal of the empirical Fisher information for the
Hessian (Amari, 1998; LeCun et al., "Optimal brain damage", 1990): per answer token,

    0.5 * sum over tokens t and channels c of w_c D_c / answer tokens,    w_c = E[g_c^2], D_c = E[(z_c - decoded)^2]

with g the gradient of the loss, summed over a micro-batch, by the features z of one token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bitseam.codecs import EntropyUniform
from bitseam.codecs.entropy import MAX_GROUPS
from bitseam.errors import CodecError, ModelError
from bitseam.parties.models import ClientModel, ServerModel
from bitseam.parties.text import TextBatch
from bitseam.quant import Float, LevelProjection, StepFSQ
from bitseam.quant.planning import ChannelPlan, crossing, plan_channels, symbol_counts

Draw = Callable[[int], tuple[Tensor, TextBatch]]  # number of a micro-batch -> tower features (I, M, Dv), text

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
        """Raises ModelError where a quantizer is not per channel, so that z has no meaning to the server."""
        self.client, self.server = client.eval().requires_grad_(False), server.eval().requires_grad_(False)
        self.modalities = ("image",) if client.text_quantizer is None else ("image", "text")
        for name in self.modalities:
            float_features = isinstance(getattr(client, f"{name}_quantizer"), Float)
            if not float_features and not isinstance(getattr(server, f"{name}_projection"), LevelProjection):
                raise ModelError(f"{name}: a plan needs a quantizer with statistics of each channel, or float features")

    def sample(self, features: Tensor, text: TextBatch) -> Sample:
        """Features (I, M, Dv) and text, as the seam has them."""
        with torch.no_grad():
            z = {"image": self.client.image_quantizer.projected(self.client.vision(features))}
            if self.client.text_quantizer is not None:
                z["text"] = self.client.text_quantizer.projected(self.client.prompt_features(text))
        z = {name: value.cpu() for name, value in z.items()}
        loss, gradient = self.gradients(text, z)
        return Sample(text, z, gradient, loss)

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
            projection = getattr(self.server, f"{name}_projection")
            value = value.to(next(self.server.parameters()).device)
            levels[name] = (value - projection.mean) / projection.std if projection is not None else value
        return self.server.loss(text, levels["image"], levels.get("text"))


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
    """Each modality's plan at one water level, and what was measured of it on held-out data."""

    theta: float
    coded: dict[str, Coded]
    bits: float  # an element, of real payloads, all modalities together


class UpPlanner:
    """Plans features at any water level.

    elements: how many of each modality the run will send, which decides how many tables pay.
    """

    def __init__(
        self, pair: FrozenPair, calibration: Sequence[Sample], held_out: Sequence[Sample], batches: int
    ) -> None:
        self.pair, self.calibration, self.held_out, self._batches = pair, calibration, held_out, batches
        self._z = {name: tokens(calibration, "z", name) for name in pair.modalities}
        self._sensitivity = {
            name: tokens(calibration, "gradient", name).double().square().mean(0) for name in pair.modalities
        }

    def at(self, theta: float) -> UpPlan:
        """The plan at a water level."""
        coded = {name: self._coded(name, theta) for name in self.pair.modalities}
        return UpPlan(theta, coded, self._payload_bits(coded))

    def of_bits(self, bits: float) -> UpPlan:
        """The plan whose held-out payloads take so many bits an element. Raises CodecError where none does."""
        return self.at(crossing(lambda theta: self.at(theta).bits, bits, *self._range(), _BITS_NEAR))

    def of_loss(self, increase: float) -> UpPlan:
        """The plan that costs the frozen pair so much, in nats an answer token, on held-out data."""
        return self.at(crossing(lambda theta: self.loss_increase(self.at(theta)), increase, *self._range(), _LOSS_NEAR))

    def loss_increase(self, plan: UpPlan) -> float:
        """Measured on held-out data, nats an answer token."""
        more = 0.0
        for sample in self.held_out:
            decoded = {name: c.decoded(c.levels(sample.z[name])) for name, c in plan.coded.items()}
            more += self.pair.loss(sample.text, decoded) - sample.loss
        return more / sum(sample.answers for sample in self.held_out)

    def payload_bits(self, plan: UpPlan, name: str) -> float:
        """Bits an element of held-out payloads of one modality."""
        return self._payload_bits({name: plan.coded[name]})

    def gradients_at(self, plan: UpPlan, sample: Sample) -> dict[str, Tensor]:
        """Gradients by z where the server sees a sample as it crosses."""
        decoded = {name: coded.decoded(coded.levels(sample.z[name])) for name, coded in plan.coded.items()}
        return self.pair.gradients(sample.text, decoded)[1]

    def predicted_loss_increase(self, plan: UpPlan) -> float:
        """The formula of this module, with the distortion of calibration data, for the held-out number of tokens."""
        total = 0.0
        for name, coded in plan.coded.items():
            count = sum(sample.z[name][..., 0].numel() for sample in self.held_out)
            z = self._z[name]
            distortion = (z - coded.decoded(coded.levels(z))).double().square().mean(0)
            total += count * float((coded.channels.sensitivity * distortion).sum()) / 2
        return total / sum(sample.answers for sample in self.held_out)

    def _payload_bits(self, coded: Mapping[str, Coded]) -> float:
        size = elements = 0
        for sample in self.held_out:
            for name, plan in coded.items():
                levels = plan.levels(sample.z[name])
                size += len(plan.codec.encode(levels))
                elements += levels.numel()
        return 8 * size / elements

    def _range(self) -> tuple[float, float]:
        """Water levels from 16 bits for the most important channel to none for any."""
        most = max(float((self._z[n].double().var(0) * self._sensitivity[n]).max()) for n in self.pair.modalities)
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


def fitted(codes: Tensor, levels: int, elements: int) -> EntropyUniform:
    """The codec whose tables, learned from levels (N, C), take the fewest bytes for so many elements, tables too."""
    channels, counts = codes.shape[1], symbol_counts(codes, levels).numpy()
    best, least = EntropyUniform(levels, (levels - 1) / 2), float("inf")
    for groups in sorted({*(2**i for i in range(channels.bit_length())), channels}):
        if groups > MAX_GROUPS:
            break
        of_groups = np.zeros((groups, levels), np.int64)
        np.add.at(of_groups, np.arange(channels) * groups // channels, counts)
        codec = replace(best, groups=groups, tables=()).learned(of_groups)
        bits = codec.bits(of_groups) / codes.numel() * elements + 8 * len(codec.table_bytes())
        if bits < least:
            best, least = codec, bits
    return best


def tokens(samples: Sequence[Sample], what: str, name: str) -> Tensor:
    """z or gradient of a modality in all samples: (N, C)."""
    return torch.cat([getattr(sample, what)[name].flatten(0, -2) for sample in samples])
