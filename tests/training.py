"""A few steps of training over the protocol, with what must hold of any stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pairs import batches, pair

from bitseam import config
from bitseam.streams import Receiver, Sender


def train_and_compare(recipe: config.Recipe) -> None:
    """Two steps: losses are finite, levels alike on both sides, gradients arrive and bytes are counted."""
    made: dict[str, list[torch.Tensor]] = {name: [] for name in recipe.streams}
    came: dict[str, list[torch.Tensor]] = {name: [] for name in recipe.streams}
    with pair(recipe) as running:
        client, draw = running.client, batches(recipe, running.client)
        features, text = draw(0)
        client.calibrate(features, text)
        for name, sender in client.streams.items():
            receiver = running.party.model.receivers()[name]
            sender.register_forward_hook(lambda _, given, out, name=name: made[name].append(out.levels.detach()))
            receiver.register_forward_hook(lambda _, given, out, name=name: came[name].append(given[0].detach()))
        sizes = payload_sizes(client.streams, running.party.model.receivers())
        before = {key: entry.bytes for key, entry in client.ledger.entries.items()}
        for step in (1, 2):
            for micro in (0, 1):
                client.model.zero_grad()
                loss = client.step(step, micro, micro == 1, *draw(2 * step + micro))
                assert torch.isfinite(torch.tensor(loss.loss))
                last = client.model.vision.connector[-1].weight.grad
                assert last.isfinite().all()
                assert last.abs().sum() > 0
        counted = {key: entry.bytes - before.get(key, 0) for key, entry in client.ledger.entries.items()}
    for name, sender in client.streams.items():
        assert len(made[name]) == 4
        assert all(torch.equal(a, b) for a, b in zip(made[name], came[name], strict=True))
        assert counted["up", "Forward", f"{name} ({sender.codec(0).codec_id})"] == sum(sizes[name, "up"]) > 0
        assert counted["down", "Backward", f"{name} ({sender.gradient_codec.codec_id})"] == sum(sizes[name, "down"]) > 0
        for codec, way in ((sender.codec(0), "up"), (sender.gradient_codec, "down")):
            dues = [codec.payload_bytes(levels.shape) for levels in made[name]]
            assert sizes[name, way] == dues if codec.fixed_length else sum(sizes[name, way]) <= sum(dues)


def payload_sizes(senders: Mapping[str, Sender], receivers: Mapping[str, Receiver]) -> dict[tuple[str, str], list[int]]:
    """Lengths of payloads as they are made from now on, by stream and direction."""
    sizes: dict[tuple[str, str], list[int]] = {}

    def count(of: Any, method: str, key: tuple[str, str]) -> None:
        whole, sizes[key] = getattr(of, method), []

        def counting(*given: Any) -> Any:
            coded = whole(*given)
            sizes[key].append(len(coded.payload))
            return coded

        setattr(of, method, counting)

    for name, sender in senders.items():
        count(sender, "encode", (name, "up"))
        count(receivers[name], "encode_gradient", (name, "down"))
    return sizes
