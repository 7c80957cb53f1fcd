"""What it is worth to send a picture's change when it comes again: codec `delta` beside the codec that it sends with.

    python benchmarks/delta.py --demo runs/demo --json docs/results/delta.json

After `make demo`: trains the demo's recipe with fp16 both ways, keeping the halves of step 800 too, and takes the
connector's outputs for the same test images at steps 800 and 1,600, about the time between two visits of a picture, in
messages of ten images. At the first visit they cross as fp16; at the second, themselves or their change, by one codec.
A run that is finished already is read, not repeated. Nothing here was tuned on the test questions.

changed             mean square of the change between the visits, relative to that of the features: what may be won
bits                of an element, 8 * len(message) / elements, at the second visit
mse                 relative to the mean square, in deviations of a channel
loss_increase       cross-entropy of an answer token over that with exact features, nats, language model frozen
loss_increase_error the standard error of it, over the images
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from frozen import Tensors, load, more, statistics_of
from processes import about_run, train
from traffic import POINTS

from bitseam.cli.machine import circumstances
from bitseam.codecs import BlockwiseInt, Codec, Fp16, NormalFloat, OneBit, SplitFC, TopK
from bitseam.codecs.delta import Changes
from bitseam.runs.checkpoint import folder_of

FIRST, SECOND = 800, 1600  # steps
CODECS: dict[str, Codec] = {  # those whose error shrinks with what they code
    **{f"int{bits}": BlockwiseInt(bits, 64) for bits in (8, 4)},
    **{f"nf{bits}": NormalFloat(bits) for bits in (4, 3, 2)},
    **{f"splitfc {bits}": SplitFC(bits) for bits in (2, 1)},
    "top-k 0.25 of 4 bits": TopK(0.25, 4),
    "one-bit, least-error": OneBit(scale="least-error"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="what `make demo` wrote")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    point = {**POINTS["fp16"], "train.checkpoint_every": FIRST, "train.steps": SECOND}
    run = train(options.demo, "fp16 twice", point, seed=0)
    (before, _), (now, counts) = (
        load(folder_of(run, "client", step), folder_of(run, "server", step), None) for step in (FIRST, SECOND)
    )
    normalise = statistics_of(now.calibration)
    first, second = [normalise(x) for x in before.features], [normalise(x) for x in now.features]
    values, exact = torch.cat(second), now.loss(now.features)
    power, room = values.square().mean(), sum(x.nbytes for x in first)
    rows = []
    for name, codec in CODECS.items():
        for change, ends in ((False, (codec, codec, 0)), (True, (Fp16(), codec, room))):
            payloads, received = second_visit(Changes(*ends), Changes(*ends), first, second)
            loss = now.loss([x * normalise.std + normalise.mean for x in received])
            rows.append(
                {
                    "codec": name,
                    "change": change,
                    "bits": 8 * sum(map(len, payloads)) / values.numel(),
                    "mse": float((torch.cat(received) - values).square().mean() / power),
                    **more("loss_increase", loss, exact),
                }
            )
            print(json.dumps(rows[-1]))
    changed = float((values - torch.cat(first)).square().mean() / power)
    report: dict[str, Any] = {"about": circumstances(torch.get_num_threads()) | counts, "trained": about_run(run)}
    report |= {"steps": (FIRST, SECOND), "changed": changed, "rows": rows}
    print(f"changed: {changed:.3f}")
    options.json.write_text(json.dumps(report, indent=1) + "\n")


@torch.no_grad()
def second_visit(sender: Changes, receiver: Changes, first: Tensors, second: Tensors) -> tuple[list[bytes], Tensors]:
    """Messages of the second visit, and what arrives of each."""
    generator = torch.Generator().manual_seed(0)
    payloads, received = [], []
    for sample, (before, now) in enumerate(zip(first, second, strict=True)):
        receiver.decode(sample, sender.encode(sample, before), before.shape)
        payloads.append(sender.encode(sample, now, generator))
        received.append(receiver.decode(sample, payloads[-1], now.shape))
    return payloads, received


if __name__ == "__main__":
    main()
