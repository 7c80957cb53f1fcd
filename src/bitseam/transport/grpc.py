"""Channels over gRPC: one bidirectional stream of pieces of frames a connection, with mutual TLS.

The stream carries bytes alone; what they mean is the business of `bitseam.wire`.
"""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from bitseam.errors import BitseamError, PeerGoneError, TransportError, UntrustedError, WireError
from bitseam.transport.address import join_address, split_address
from bitseam.transport.allow import Admission
from bitseam.transport.certs import Tls, common_name, describe
from bitseam.transport.channel import Channel, Inbox
from bitseam.transport.core_log import log_failed_handshakes
from bitseam.transport.flow import PIECE, Assembly, Outbox, Places
from bitseam.transport.meter import Meter
from bitseam.transport.ports import require_port
from bitseam.transport.reach import reach, require_tls
from bitseam.wire import messages_pb2 as pb

log = logging.getLogger(__name__)

_SEAM = pb.DESCRIPTOR.services_by_name["Seam"]
_SERVICE, _METHOD = _SEAM.full_name, _SEAM.methods[0].name
_OPTIONS = [
    ("grpc.max_send_message_length", 2 * PIECE),
    ("grpc.max_receive_message_length", 2 * PIECE),
    ("grpc.enable_http_proxy", 0),  # the address is the peer's own, and a proxy would end the TLS
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 100),  # a peer may ask more often than we do
]
KEEPALIVE = 20.0  # seconds of silence until a peer is asked whether it is there
_CONNECTING = threading.Lock()  # one at a time, so that each meter knows its own connection
_READY = 10.0  # seconds for gRPC's own connection, once the server is known to be there
_REVIEW = 1.0  # seconds between looks at whether those who speak still may
_SESSIONS_OF_A_CLIENT = 4  # even of few: a link that broke may not be missed yet when the next one comes
_FLUSH = 5.0  # seconds that a closing side gives its last frames


class GrpcChannel(Channel):
    """One end of a stream; `outbox` feeds gRPC's sender.

    plaintext: frames carry checksums; see `bitseam.transport.flow`. damage: what was found to be damaged on the way.
    """

    def __init__(self, peer: str, name: str, meter: Meter, end: Callable[[], None], plaintext: bool) -> None:
        self.peer, self.name = peer, name
        self.inbox = Inbox()
        self.outbox = Outbox(plaintext)
        self.over = threading.Event()
        self.damage = ""
        self._meter, self._end = meter, end
        self._assembly = Assembly(plaintext)
        self._counted: tuple[int, int] | None = None
        self._closed = False

    @property
    def gone(self) -> bool:
        return self._closed or self.over.is_set()

    def send(self, frame: bytes) -> None:
        if self._closed:
            raise PeerGoneError("this channel is closed")
        with suppress(WireError):  # who sends too much or what is no piece is still there, and is told so
            self.inbox.check()
        self.outbox.put(frame)

    def receive(self, timeout: float | None = None) -> bytes:
        return self.inbox.get(timeout)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.inbox.shut()
            self.outbox.end()
            self._end()

    def socket_bytes(self) -> tuple[int, int] | None:
        if not self.over.is_set():
            self._counted = self._meter.read()
        return self._counted

    def finish(self, reason: str, error: type[BitseamError] = PeerGoneError) -> None:
        """Nothing crosses any more; `receive` gives out what has arrived, then raises `error`."""
        self.socket_bytes()  # while the connection is there
        self.over.set()
        self.inbox.end(reason, error)
        self.outbox.end()

    def take(self, received: Iterable[bytes]) -> bool:
        """Give the pieces that gRPC receives to `receive`, as frames; whether to the end.

        While frames wait to be received, no more pieces are taken from gRPC, which then lets the peer send no more.
        After a frame of more than `most` bytes, what is no piece, or what was damaged on the way, `receive` raises what
        is wrong.
        """
        try:
            for message in received:
                self.inbox.wait_for_room()
                if (frame := self._assembly.add(message, self.most)) is not None:
                    self.inbox.put(frame)
        except (WireError, PeerGoneError) as error:
            if isinstance(error, PeerGoneError):
                self.damage = str(error)
            self.inbox.end(str(error), type(error))
            return False
        return True


def connect(address: str, tls: Tls | None, keepalive: float = KEEPALIVE, exposed: bool = False) -> GrpcChannel:
    """A client's channel to `address`, "host:port".

    keepalive: seconds of silence, .1 or more, after which the peer is asked whether it is there; three times as many
    later it is given up. exposed: plaintext to another machine, for all on the way to read and change. Raises
    UntrustedError where either side does not know the other's certificate, PeerGoneError where nobody listens,
    TransportError for plaintext to another machine that is not `exposed` or where one side alone uses TLS.
    `socket_bytes` counts the session's connection, not the short one that tries the server.
    """
    host, port = split_address(address)
    if not port:
        raise TransportError(f"network.address {address!r}: write the server's port; 0 is for a server that takes any")
    address = join_address(host, port)
    require_tls(host, tls, exposed)
    certificate_seen = reach(host, port, tls)
    peer = f"server {describe(certificate_seen)} at {address}" if certificate_seen else f"server at {address}"
    name = common_name(certificate_seen) if certificate_seen else ""
    # A connection for each session.
    options = [*_OPTIONS, *_keepalive(keepalive), ("grpc.use_local_subchannel_pool", 1)]
    if tls is None:
        network = grpc.insecure_channel(address, options)
    else:
        authority, certificate, key = tls.read()
        network = grpc.secure_channel(address, grpc.ssl_channel_credentials(authority, key, certificate), options)
    meter = Meter(host, port)
    with _CONNECTING:
        meter.skip_present()
        try:
            grpc.channel_ready_future(network).result(_READY)
        except grpc.FutureTimeoutError as error:
            network.close()
            raise PeerGoneError(f"{address}: the server went away while we connected") from error
        meter.read()

    def end() -> None:
        channel.over.wait(_FLUSH)
        network.close()

    channel = GrpcChannel(peer, name, meter, end, plaintext=tls is None)
    call = network.stream_stream(f"/{_SERVICE}/{_METHOD}")(channel.outbox.pieces())

    def read() -> None:
        reason: tuple[str, type[BitseamError]] = "the server went away", PeerGoneError
        try:
            if not channel.take(call):
                call.cancel()
        except grpc.RpcError as error:
            reason = _ended(error, address)
        channel.finish(*reason)

    threading.Thread(target=read, daemon=True, name="bitseam-reader").start()
    return channel


class Listener:
    """A server: `handler` runs with the channel of each session, in a thread of its own.

    The session ends when the handler returns or raises. `address` is "host:port"; port 0 takes a free one, see `port`.
    More than `max_sessions` at a time are refused, and more than a quarter of them to one client that a certificate
    names. A peer whose certificate is not verified, or that `admission` does
    not let in, never comes to the handler: our log has the reason, and the peer is told none. With TLS, and no
    `admission` given, every client of the authority is let in whose certificate it has not revoked. exposed: plaintext
    for other machines, for all on the way to read and change. Raises AddressInUseError, or TransportError for an
    address or certificates that cannot be used.
    """

    def __init__(
        self,
        address: str,
        handler: Callable[[Channel], None],
        tls: Tls | None,
        max_sessions: int = 32,
        keepalive: float = KEEPALIVE,
        admission: Admission | None = None,
        exposed: bool = False,
    ) -> None:
        host, port = split_address(address)
        address = join_address(host, port)
        require_tls(host, tls, exposed)
        require_port(host, port)
        self._handler, self._plaintext = handler, tls is None
        self._admission = admission or (Admission(tls.authority, tls.revocations) if tls is not None else None)
        # Those with a certificate, and how to end their calls.
        self._admitted: dict[GrpcChannel, tuple[bytes, Callable[[], object]]] = {}
        self._stopped = threading.Event()
        self._places = Places(max(max_sessions // 4, _SESSIONS_OF_A_CLIENT))
        self._server = grpc.server(
            ThreadPoolExecutor(max_sessions, "bitseam-session"),
            options=[*_OPTIONS, *_keepalive(keepalive), *_server_options(max_sessions)],
            maximum_concurrent_rpcs=max_sessions,
        )
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        method = grpc.stream_stream_rpc_method_handler(self._session)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {_METHOD: method}),))
        try:
            if tls is None:
                self.port = self._server.add_insecure_port(address)
            else:
                authority, certificate, key = tls.read()
                pair = [(key, certificate)]
                credentials = grpc.ssl_server_credentials(pair, authority, require_client_auth=True)
                self.port = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise TransportError(f"{address}: cannot listen there: {error}") from error

    def start(self) -> None:
        if self._admission is not None:
            log_failed_handshakes()
            review = (self._admission,)
            threading.Thread(target=self._review, args=review, daemon=True, name="bitseam-admission").start()
        self._server.start()
        self._tell_health(health_pb2.HealthCheckResponse.SERVING)

    def leave(self) -> None:
        """Say through gRPC's health service that nobody should come here any more."""
        self._tell_health(health_pb2.HealthCheckResponse.NOT_SERVING)

    def stop(self, grace: float = 0.0) -> None:
        """Take no new session, and end those that run after `grace` seconds."""
        self._stopped.set()
        self._server.stop(grace).wait()

    def _tell_health(self, status: int) -> None:
        for name in ("", _SERVICE):
            self._health.set(name, status)

    def _admit(self, context: Any) -> GrpcChannel:
        """The channel of a client that may speak; ends the call of another, without a reason."""
        where, certificate = unquote(context.peer()).partition(":")[2], _certificate(context)
        peer, name = f"client at {where}", ""
        if certificate is not None and self._admission is not None:
            try:
                peer = f"client {describe(certificate)} at {where}"
                name = self._admission.admit(certificate)
            except (UntrustedError, ValueError) as error:
                log.warning("%s: refused: %s", peer, error)
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "")
        channel = GrpcChannel(peer, name, Meter(*_peer_address(context.peer())), lambda: None, self._plaintext)
        if certificate is not None:
            self._admitted[channel] = certificate, context.cancel
        return channel

    def _review(self, admission: Admission) -> None:
        """End the sessions of clients that have lost their admission since they began."""
        while not self._stopped.wait(_REVIEW):
            for channel, (certificate, end) in list(self._admitted.items()):
                try:
                    admission.admit(certificate)
                except UntrustedError as error:
                    log.warning("%s: its session is ended: %s", channel.peer, error)
                    channel.finish(f"the client may not speak any more: {error}", UntrustedError)
                    end()

    def _session(self, frames: Iterator[bytes], context: Any) -> Iterator[bytes]:
        channel = self._admit(context)
        placed = self._places.take(channel.name)

        def over() -> None:
            if placed:
                self._places.free(channel.name)
            self._admitted.pop(channel, None)
            channel.finish("the client went away")

        def read() -> None:
            with suppress(Exception):  # gRPC raises a bare one where a request stream breaks
                channel.take(frames)
            channel.inbox.end("the client went away")

        def run() -> None:
            try:
                self._handler(channel)
            except Exception:
                log.exception("%s: the session broke", channel.peer)
            finally:
                channel.close()
                if not channel.over.wait(_FLUSH):
                    context.cancel()  # the client does not take our last frames

        if not context.add_callback(over):
            over()  # the client has gone already
        elif not placed:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"a client may have {self._places.each} sessions")
        threading.Thread(target=read, daemon=True, name="bitseam-reader").start()
        threading.Thread(target=run, name="bitseam-handler").start()
        yield from channel.outbox.pieces()
        if channel.damage:
            context.abort(grpc.StatusCode.DATA_LOSS, channel.damage)


def _server_options(max_sessions: int) -> list[tuple[str, int]]:
    """What connections may take that have no session, or none yet."""
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.max_allowed_incoming_connections", 256 + max_sessions),
        ("grpc.max_concurrent_streams", 8),  # of a connection; a client of ours has one, and its operator's probes
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.max_connection_idle_ms", 60_000),
    ]


def _keepalive(seconds: float) -> list[tuple[str, int]]:
    # The answer to a ping goes by `ping_timeout`; `keepalive_timeout` is for bytes that TCP gets no word of. An answer
    # may have to wait behind all that the system has taken to send: on a slow line, too few seconds end a sound
    # connection.
    parts = {"keepalive_time": 1, "keepalive_timeout": 1, "http2.ping_timeout": 3}
    return [(f"grpc.{name}_ms", round(seconds * part * 1000)) for name, part in parts.items()]


def _ended(error: grpc.RpcError, address: str) -> tuple[str, type[TransportError]]:
    """Why a call to the server at `address` ended, for its channel."""
    if isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.UNAUTHENTICATED:
        refusal = "the server does not let the client of our certificate speak; its operator and its log know why"
        return f"{address}: {refusal}", UntrustedError
    details = str(error.details() if isinstance(error, grpc.Call) else error)
    return f"the server went away ({details})" if details else "the server went away", PeerGoneError


def _peer_address(peer: str) -> tuple[str, int]:
    """gRPC's "ipv4:127.0.0.1:5000" or "ipv6:[::1]:5000", percent-encoded -> host, port."""
    host, _, port = unquote(peer).partition(":")[2].rpartition(":")
    return host.strip("[]"), int(port)


def _certificate(context: Any) -> bytes | None:
    """What the client showed and gRPC verified, in DER form; None in plaintext."""
    pem = context.auth_context().get("x509_pem_cert")
    return ssl.PEM_cert_to_DER_cert(pem[0].decode()) if pem else None
