"""Channels over gRPC: one bidirectional stream of frames a session, with mutual TLS.

The stream carries bytes alone; what they mean is the business of `bitseam.wire`.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import queue
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote

import grpc

from bitseam.errors import AddressInUseError, PeerGoneError, TransportError, UntrustedError
from bitseam.transport.certs import Tls, common_name, describe
from bitseam.transport.channel import Channel, Inbox
from bitseam.transport.meter import Meter
from bitseam.wire import Limits

log = logging.getLogger(__name__)

_SERVICE, _METHOD = "bitseam.v1.Seam", "Session"
_OPTIONS = [
    ("grpc.max_send_message_length", Limits().frame_bytes),
    ("grpc.max_receive_message_length", Limits().frame_bytes),
    ("grpc.enable_http_proxy", 0),  # the address is the peer's own, and a proxy would end the TLS
    ("grpc.keepalive_time_ms", 20_000),  # a peer that vanished without a word is noticed within 40 seconds
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
]
_HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"  # RFC 9113, 3.4
_CONNECTING = threading.Lock()  # one at a time, so that each meter knows its own connection
_SETTINGS = b"\4"  # the type of the frame that greets back
_READY = 10.0  # seconds for gRPC's own connection, once the server is known to be there
_FLUSH = 5.0  # seconds that a closing side gives its last frames


class GrpcChannel(Channel):
    """One end of a stream; `outbox` feeds gRPC's sender until None."""

    def __init__(self, peer: str, name: str, meter: Meter, end: Callable[[], None]) -> None:
        self.peer, self.name = peer, name
        self.inbox = Inbox()
        self.outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.over = threading.Event()
        self._meter, self._end = meter, end
        self._counted: tuple[int, int] | None = None
        self._closed = False

    def send(self, frame: bytes) -> None:
        if self._closed:
            raise PeerGoneError("this channel is closed")
        self.inbox.check()
        self.outbox.put(frame)

    def receive(self, timeout: float | None = None) -> bytes:
        return self.inbox.get(timeout)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.outbox.put(None)
            self._end()

    def socket_bytes(self) -> tuple[int, int] | None:
        if not self.over.is_set():
            self._counted = self._meter.read()
        return self._counted

    def finish(self, reason: str) -> None:
        """Nothing crosses any more; `receive` gives out what has arrived, then the reason."""
        self.socket_bytes()  # while the connection is there
        self.over.set()
        self.inbox.end(reason)
        self.outbox.put(None)

    def frames_out(self) -> Iterator[bytes]:
        """What gRPC sends: frames until `close`."""
        while (frame := self.outbox.get()) is not None:
            yield frame


def connect(address: str, tls: Tls | None) -> GrpcChannel:
    """A client's channel to `address`, "host:port".

    Raises UntrustedError where either side does not know the
    other's certificate, PeerGoneError where nobody listens, TransportError for plaintext to another machine or where
    one side alone uses TLS. `socket_bytes` counts the session's connection, not the short one that tries the server.
    """
    host, port = split_address(address)
    _require_tls(host, tls)
    certificate_seen = _reach(host, port, tls)
    peer = f"server {describe(certificate_seen)} at {address}" if certificate_seen else f"server at {address}"
    name = common_name(certificate_seen) if certificate_seen else ""
    options = [*_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]  # a connection for each session
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

    channel = GrpcChannel(peer, name, meter, end)
    call = network.stream_stream(f"/{_SERVICE}/{_METHOD}")(channel.frames_out())

    def read() -> None:
        reason = "the server went away"
        try:
            for frame in call:
                channel.inbox.put(frame)
        except grpc.RpcError as error:
            details = str(error.details() if isinstance(error, grpc.Call) else error)
            reason = f"the server went away ({details})" if details else reason
        channel.finish(reason)

    threading.Thread(target=read, daemon=True, name="bitseam-reader").start()
    return channel


class Listener:
    """A server: `handler` runs with the channel of each session, in a thread of its own.

    The session ends when the handler returns or raises. `address` is "host:port"; port 0 takes a free one, see `port`.
    More than `max_sessions` at a time are refused. A peer that fails the TLS handshake never comes to the handler: gRPC
    itself writes "Handshake failed" and the reason to stderr. Raises AddressInUseError, or TransportError for an
    address or certificates that cannot be used.
    """

    def __init__(
        self, address: str, handler: Callable[[Channel], None], tls: Tls | None, max_sessions: int = 32
    ) -> None:
        host, port = split_address(address)
        _require_tls(host, tls)
        _require_free(host, port)
        self._handler = handler
        self._server = grpc.server(
            ThreadPoolExecutor(max_sessions, "bitseam-session"),
            options=[*_OPTIONS, ("grpc.so_reuseport", 0)],
            maximum_concurrent_rpcs=max_sessions,
        )
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
        self._server.start()

    def stop(self, grace: float = 0.0) -> None:
        """Take no new session, and end those that run after `grace` seconds."""
        self._server.stop(grace).wait()

    def _session(self, frames: Iterator[bytes], context: Any) -> Iterator[bytes]:
        peer, name = _identify(context)
        channel = GrpcChannel(peer, name, Meter(*_peer_address(context.peer())), lambda: None)

        def over() -> None:
            channel.finish("the client went away")

        def read() -> None:
            try:
                for frame in frames:
                    channel.inbox.put(frame)
            except Exception:  # gRPC raises a bare Exception where a request stream breaks
                pass
            channel.inbox.end("the client went away")

        def run() -> None:
            try:
                self._handler(channel)
            except Exception:
                log.exception("%s: the session broke", channel.peer)
            finally:
                channel.close()

        if not context.add_callback(over):
            over()  # the client has gone already
        threading.Thread(target=read, daemon=True, name="bitseam-reader").start()
        threading.Thread(target=run, name="bitseam-handler").start()
        yield from channel.frames_out()


def split_address(address: str) -> tuple[str, int]:
    """ "host:port" -> host, port. Raises TransportError for another form."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise TransportError(f"network.address {address!r}: write host:port")
    return host.strip("[]"), int(port)


def _require_tls(host: str, tls: Tls | None) -> None:
    if tls is not None or host == "localhost":
        return
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise TransportError(
            f"{host}: without TLS, anyone on the way reads and changes what crosses; set network.certificates "
            "(`bitseam certs` makes a development set). Plaintext is for loopback alone"
        )


def _require_free(host: str, port: int) -> None:
    """Raise AddressInUseError unless every address of `host` is free: gRPC is content with one of them."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise TransportError(f"{host}: cannot listen there: {error}") from error
    for family, kind, protocol, _, address in found if port else []:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does: a server may come back at once
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind(address)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise AddressInUseError(
                        f"{host}:{port}: the port is in use by another process; choose another"
                    ) from error


def _reach(host: str, port: int, tls: Tls | None) -> bytes | None:
    """See that a server listens, and that both sides trust each other; returns its certificate in DER form.

    gRPC tells little of why a handshake failed, so one is made by Python's own TLS first.
    """
    try:
        with socket.create_connection((host, port), timeout=_READY) as plain:
            if tls is not None:
                return _shake_hands(plain, host, port, tls)
            _greet_plainly(plain, f"{host}:{port}")
            return None
    except OSError as error:
        raise PeerGoneError(f"{host}:{port}: no server there: {error}") from error


def _greet_plainly(plain: socket.socket, address: str) -> None:
    plain.sendall(_HTTP2_GREETING)
    if plain.recv(9)[3:4] != _SETTINGS:
        raise TransportError(
            f"{address}: no plaintext HTTP/2 there; a server with network.certificates needs a client with them"
        )


def _shake_hands(plain: socket.socket, host: str, port: int, tls: Tls) -> bytes | None:
    address = f"{host}:{port}"
    context = tls.context()
    context.set_alpn_protocols(["h2"])
    try:
        secure = context.wrap_socket(plain, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        raise UntrustedError(
            f"{address}: we do not trust the server's certificate: {error.verify_message}; the authority that we trust "
            f"is {tls.authority}"
        ) from error
    except ssl.SSLError as error:
        raise TransportError(f"{address}: no TLS there, or none that we speak: {error.reason or error}") from error
    with secure:
        # In TLS 1.3 a server's refusal comes after the handshake; a server that accepts us answers our greeting.
        try:
            secure.sendall(_HTTP2_GREETING)
            answer, why = secure.recv(9), "it closed the connection"
        except TimeoutError:
            raise
        except OSError as error:
            answer, why = b"", str(getattr(error, "reason", None) or error)
        if not answer:
            raise UntrustedError(
                f"{address}: the server does not accept our certificate {tls.certificate}: {why}. The server trusts "
                "another authority, or the certificate is expired or not a client's; its stderr says which"
            )
        return secure.getpeercert(binary_form=True)


def _peer_address(peer: str) -> tuple[str, int]:
    """gRPC's "ipv4:127.0.0.1:5000" or "ipv6:[::1]:5000", percent-encoded -> host, port."""
    host, _, port = unquote(peer).partition(":")[2].rpartition(":")
    return host.strip("[]"), int(port)


def _identify(context: Any) -> tuple[str, str]:
    """Who a client is: for logs, and the common name of its certificate."""
    where = unquote(context.peer()).partition(":")[2]
    pem = context.auth_context().get("x509_pem_cert")
    if not pem:
        return f"client at {where}", ""
    certificate = ssl.PEM_cert_to_DER_cert(pem[0].decode())
    return f"client {describe(certificate)} at {where}", common_name(certificate)
