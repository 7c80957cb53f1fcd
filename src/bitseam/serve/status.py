"""Who is connected to a server of this machine, read from its metrics."""

from __future__ import annotations

import json
import time
import urllib.request
from collections import defaultdict
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from bitseam.errors import PeerGoneError

Samples = dict[str, list[tuple[dict[str, str], float]]]


@dataclass(frozen=True)
class ClientStatus:
    """One open session. rate: steps a second, just now. Bytes are the client's in all since the server began."""

    client: str
    session: str
    purpose: str
    seconds: float
    step: int | None
    rate: float
    up_bytes: int
    down_bytes: int
    fp16_bytes: int


def read_status(note: Path, span: float = 1.0) -> tuple[int, list[ClientStatus]]:
    """The server's step, and its sessions. note: the file that `publish` wrote. span: seconds to take the rate over.

    Raises PeerGoneError where no server answers.
    """
    try:
        address = json.loads(note.read_text())["metrics"]
        earlier, began = _read(address), time.monotonic()
        time.sleep(span)
        now, span = _read(address), time.monotonic() - began
    except (OSError, ValueError, KeyError, TypeError, HTTPException) as error:
        raise PeerGoneError(
            f"{note}: no server of this recipe runs on this machine, or network.metrics is empty: {error}"
        ) from error
    steps = {labels["client"]: int(value) for labels, value in now["bitseam_client_step"]}
    before = _by_client(earlier["bitseam_steps_total"])
    done = _by_client(now["bitseam_steps_total"])
    up, down = (
        _by_client([sample for sample in now["bitseam_bytes_total"] if sample[0]["direction"] == way])
        for way in ("up", "down")
    )
    fp16 = _by_client(now["bitseam_fp16_bytes_total"])
    sessions = [
        ClientStatus(
            client=(name := labels["client"]),
            session=labels["session"],
            purpose=labels["purpose"],
            seconds=time.time() - since,
            step=steps.get(name) if labels["purpose"] == "train" else None,
            rate=(done[name] - before[name]) / span,
            up_bytes=int(up[name]),
            down_bytes=int(down[name]),
            fp16_bytes=int(fp16[name]),
        )
        for labels, since in now["bitseam_session"]
    ]
    return int(now["bitseam_step"][0][1]), sorted(sessions, key=lambda one: (one.client, one.session))


def _read(address: str) -> Samples:
    directly = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy's loopback is another machine's
    with directly.open(address, timeout=10) as answer:
        samples: Samples = defaultdict(list)
        for family in text_string_to_metric_families(answer.read().decode()):
            for sample in family.samples:
                samples[sample.name].append((sample.labels, sample.value))
        return samples


def _by_client(samples: list[tuple[dict[str, str], float]]) -> defaultdict[str, float]:
    total: defaultdict[str, float] = defaultdict(float)
    for labels, value in samples:
        total[labels["client"]] += value
    return total
