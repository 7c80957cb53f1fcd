"""What a real server tells its operator while a client trains: metrics, status, log, health."""

from __future__ import annotations

import json
import re
import signal
import urllib.request
from pathlib import Path

import grpc
import pytest
from conftest import Tiny
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families
from test_two_processes import Work, ended, wait_for, work  # noqa: F401  (a fixture)

from bitseam.errors import PeerGoneError
from bitseam.serve.status import read_status
from bitseam.transport import Tls

DOCUMENT = Path(__file__).parents[2] / "docs" / "operations.md"
LONG = ("--set", "train.steps=100000", "--set", "train.checkpoint_every=50000")


def health_of(work: Work) -> str:  # noqa: F811
    address = re.search(r'address = "(.*)"', work.recipe.read_text())
    assert address is not None
    authority, certificate, key = Tls.from_folder(work.folder / "certs", "client").read()
    credentials = grpc.ssl_channel_credentials(authority, key, certificate)
    with grpc.secure_channel(address[1], credentials) as channel:
        request = health_pb2.HealthCheckRequest(service="bitseam.v1.Seam")
        answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=10)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


def test_an_operator_sees_what_happens(work: Work, tiny: Tiny) -> None:  # noqa: F811
    note, events = (work.folder / "run" / "server" / name for name in ("metrics.json", "events.jsonl"))
    with pytest.raises(PeerGoneError, match="no server of this recipe runs on this machine"):
        read_status(note)
    with work.server(*LONG) as server:
        client = work.start("train", str(work.recipe), *LONG)
        rows = work.folder / "run/client/log.jsonl"
        wait_for(lambda: rows.exists() and len(rows.read_text().splitlines()) > 5, server, client)
        status, output = work.run("status", str(work.recipe), *LONG)
        assert status == 0, output
        assert "client" in output
        assert "steps/s" in output
        step, (session,) = read_status(note, span=0.5)
        assert step >= 5
        assert (session.client, session.purpose) == ("client", "train")
        assert session.step is not None
        assert abs(session.step - step) <= 20
        assert session.rate > 0
        assert health_of(work) == "SERVING"

        with urllib.request.urlopen(json.loads(note.read_text())["metrics"]) as answer:
            families = {family.name: family for family in text_string_to_metric_families(answer.read().decode())}
        documented = set(re.findall(r"^\| `(bitseam_\w+)` \|", DOCUMENT.read_text(), re.MULTILINE))
        assert set(families) == documented
        labels = {tuple(sorted(sample.labels)) for sample in families["bitseam_bytes"].samples}
        assert labels == {("client", "direction", "part")}
        kinds = {sample.labels["request"] for sample in families["bitseam_compute_seconds"].samples}
        assert kinds == {"Hello", "Calibrate", "Checkpoint", "Forward"}

        client.send_signal(signal.SIGSTOP)  # it cannot end its step: the server waits for it
        server.send_signal(signal.SIGTERM)
        wait_for(lambda: health_of(work) == "NOT_SERVING", server)
        client.send_signal(signal.SIGCONT)
        status, output = ended(server)
        assert status == 0, output
        client.kill()
        client.communicate()
        last = json.loads(rows.read_text().splitlines()[-2])
        sent = json.loads((work.folder / "run/client" / f"step-{work.steps('client')[-1]:06d}/ledger.json").read_text())
        assert last["up_bytes"] <= sum(row["bytes"] for row in sent if row["direction"] == "up")
    records = [json.loads(line) for line in events.read_text().splitlines()]
    assert all({"time", "level", "logger", "message"} <= record.keys() for record in records)
    checkpoints = [record for record in records if record["message"].startswith("checkpoint")]
    assert [record["client"] for record in checkpoints] == ["client"] * len(checkpoints)
    assert checkpoints[0]["step"] == 0
    assert checkpoints[-1]["step"] == work.steps("server")[-1]
    assert len({record["session"] for record in checkpoints}) == 1


@pytest.mark.slow
def test_bytes_in_the_metrics_are_those_of_the_clients_ledger(work: Work) -> None:  # noqa: F811
    note = work.folder / "run" / "server" / "metrics.json"
    with work.server() as server:
        status, output = work.run("train", str(work.recipe))
        assert status == 0, output
        summary = json.loads((work.folder / "run/client/summary.json").read_text())
        with urllib.request.urlopen(json.loads(note.read_text())["metrics"]) as answer:
            families = {family.name: family for family in text_string_to_metric_families(answer.read().decode())}
        told = {
            (sample.labels["direction"], sample.labels["part"]): int(sample.value)
            for sample in families["bitseam_bytes"].samples
        }
        for row in summary["ledger"]:  # as it stood when training was over; questions and a goodbye came since
            if row["kind"] == "Forward" and row["part"] != "rest":
                assert told[row["direction"], row["part"]] >= row["bytes"]
        down = next(row for row in summary["ledger"] if (row["kind"], row["direction"]) == ("Backward", "down"))
        assert any(told[place] == down["bytes"] for place in told if place[0] == "down")
        steps = {
            sample.labels["client"]: sample.value
            for sample in families["bitseam_steps"].samples
            if "_total" in sample.name
        }
        assert steps == {"client": 6.0}
        server.send_signal(signal.SIGTERM)
        assert ended(server)[0] == 0


@pytest.mark.slow
def test_a_refusal_is_counted_and_a_port_in_use_is_named(work: Work) -> None:  # noqa: F811
    note = work.folder / "run" / "server" / "metrics.json"
    with work.server():
        assert work.run("train", str(work.recipe), "--set", "streams.image.levels=8")[0] == 1
        address = json.loads(note.read_text())["metrics"]
        with urllib.request.urlopen(address) as answer:
            assert 'bitseam_refusals_total{fault="terms_differ"} 1.0' in answer.read().decode()
        other = ("--set", "network.address=localhost:0", "--set", f"out={work.folder / 'other'}")
        taken = address.split("/")[2]
        status, output = work.run("serve", str(work.recipe), *other, "--set", f"network.metrics={taken}")
        assert status == 1
        assert f"network.metrics {taken}: the port is in use by another process; choose another" in output
