"""Bytes of rate-fsq codes by the number of contexts and groups: tables that the left and the upper token choose.

    python benchmarks/contexts.py [--run runs/demo/several-rates] [--questions runs/demo/questions] [--json FILE]

The trained client half of a run; tables from 3,000 images of its training file, and bytes of the images of the test
file at each of its rates, in messages of ten images and of one, lane ends included, tables not. `few` is what messages
of ten take by tables from 80 images. `table_bytes` cross once, and again when codes have drifted; `pays` is after how
many images, in messages of ten, they are made up for, beside as many groups of one context. Milliseconds are medians on
one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from bitseam.api.recipes import locate
from bitseam.cli.machine import circumstances
from bitseam.codecs import EntropyUniform
from bitseam.data.features import LiveFeatures
from bitseam.data.rows import read_rows
from bitseam.runs.checkpoint import load_client, newest

GROUPS, CONTEXTS = (8, 16, 32), (1, 3, 5, 7)
CALIBRATION, FEW, MESSAGE, ROUNDS = 3000, 80, 10, 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo/several-rates"))
    parser.add_argument("--questions", type=Path, default=Path("runs/demo/questions"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, _, identity = load_client(newest(options.run, "client"), locate)
    image, tower, levels = model.senders()["image"], LiveFeatures(model.eval().vision), {}
    with torch.no_grad():
        for name, first in (("train", CALIBRATION), ("test", None)):
            rows = read_rows(options.questions / f"{name}.jsonl")
            paths = [path for path, _ in groupby(row.image for row in rows)][:first]
            features = [tower.of(paths[start : start + 50]) for start in range(0, len(paths), 50)]
            for rate in range(image.rates):
                image.use(rate)
                levels[name, rate] = torch.cat([image(model.vision(part)).levels for part in features])
    rows = []
    for rate, multiple in enumerate(image.settings.rates):
        for groups in GROUPS:
            for contexts in CONTEXTS:
                used = image.codec(rate)
                codec = EntropyUniform(used.levels, used.clip, groups, contexts=contexts)
                rows.append({"multiple": multiple} | measured(codec, levels["train", rate], levels["test", rate]))
                plain = next(r for r in rows if (r["multiple"], r["groups"]) == (multiple, groups))
                saved = plain["of_ten"] - rows[-1]["of_ten"]
                rows[-1]["pays"] = (rows[-1]["table_bytes"] - plain["table_bytes"]) / saved if saved else 0.0
                print("  ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()), flush=True)
    about = circumstances(1) | {"run": str(identity), "images": len(levels["test", 0])}
    if options.json:
        options.json.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")


def measured(codec: EntropyUniform, known: Tensor, x: Tensor) -> dict[str, float]:
    """Bytes an image of x (I, T, C) by tables from known, and times of messages."""
    fitted, few = (codec.learned(codec.counts(part)) for part in (known, known[:FEW]))
    row = {"groups": codec.groups, "contexts": codec.contexts, "table_bytes": len(codec.table_bytes())}
    row |= {"of_ten": size(fitted, x, MESSAGE), "of_one": size(fitted, x, 1), "few": size(few, x, MESSAGE)}
    for name, count in (("ten", MESSAGE), ("one", 1)):
        message = x[:count]
        payload = fitted.encode(message)
        row[f"encode_{name}_ms"] = milliseconds(lambda message=message: fitted.encode(message))
        row[f"decode_{name}_ms"] = milliseconds(lambda p=payload, shape=message.shape: fitted.decode(p, shape))
    return row


def size(codec: EntropyUniform, x: Tensor, message: int) -> float:
    """Bytes an image, in messages of so many."""
    return sum(len(codec.encode(part)) for part in x.split(message)) / len(x)


def milliseconds(run: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


if __name__ == "__main__":
    main()
