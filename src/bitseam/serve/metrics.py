"""Prometheus metrics of a server, over HTTP: `docs/operations.md` has the table."""

from __future__ import annotations

from collections.abc import Iterator
from time import time
from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bitseam.errors import TransportError
from bitseam.serve.sessions import Sessions
from bitseam.sessions.party import ServerParty, StepReport
from bitseam.transport import join_address, metrics_address

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)


class Metrics(Collector):
    """Counts steps, requests and refusals as they happen; sessions and bytes are looked up when somebody asks."""

    def __init__(self, party: ServerParty, sessions: Sessions) -> None:
        self._party, self._sessions = party, sessions
        disable_created_metrics()  # a second series for each counter, of no use to Prometheus itself
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self._steps = Counter("bitseam_steps", "Optimiser steps", ["client"], registry=self.registry)
        self._refusals = Counter("bitseam_refusals", "Refusals told to clients", ["fault"], registry=self.registry)
        self._waited = self._histogram("bitseam_wait_seconds", "Requests: time in the queue")
        self._took = self._histogram("bitseam_compute_seconds", "Requests: time with the model")
        Gauge("bitseam_queue", "Requests in the queue or with the model", registry=self.registry).set_function(
            lambda: party.asked
        )
        Gauge("bitseam_start_time_seconds", "When the server began", registry=self.registry).set(time())
        party.on_request, party.on_refusal = self._on_request, lambda fault: self._refusals.labels(fault).inc()

    def on_step(self, report: StepReport) -> None:
        """Count a step of its client."""
        self._steps.labels(report.client).inc()

    def collect(self) -> Iterator[Metric]:
        """What there is now; called by the registry."""
        step = GaugeMetricFamily("bitseam_step", "The server's step")
        step.add_metric([], self._party.step)
        yield step
        here = GaugeMetricFamily("bitseam_session", "Open sessions", labels=["client", "session", "purpose"])
        steps = GaugeMetricFamily("bitseam_client_step", "A client's last whole step", labels=["client"])
        for session in self._sessions.here():
            here.add_metric([session.client, session.id, session.purpose], session.since)
            if session.training:
                steps.add_metric([session.client], session.step)
        yield here
        yield steps
        names = ("bitseam_bytes", "Bytes of frames"), ("bitseam_fp16_bytes", "What these would be at fp16")
        for (name, what), crossed in zip(names, self._sessions.crossed(), strict=True):
            family = CounterMetricFamily(name, what, labels=["client", "direction", "part"])
            for place, size in sorted(crossed.items()):
                family.add_metric(place, size)
            yield family

    def _histogram(self, name: str, what: str) -> Histogram:
        return Histogram(name, what, ["request"], registry=self.registry, buckets=_SECONDS)

    def _on_request(self, kind: str, waited: float, took: float) -> None:
        self._waited.labels(kind).observe(waited)
        self._took.labels(kind).observe(took)


def publish(metrics: Metrics, address: str) -> tuple[WSGIServer, str]:
    """Serve them over HTTP at `address`, port 0 for a free one -> server, and where they are.

    There is neither TLS nor a password: whoever reaches the address reads clients' names and how much they send.
    Raises TransportError for an address that cannot be used.
    """
    host, port = metrics_address(address)
    try:
        server, _ = start_http_server(port, host, metrics.registry)
    except OSError as error:
        raise TransportError(f"network.metrics {address}: cannot listen there: {error}") from error
    return server, f"http://{join_address(host, server.server_port)}/metrics"
