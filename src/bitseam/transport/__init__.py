"""Bytes <-> network: channels in memory and over gRPC with mutual TLS, and certificates."""

from bitseam.transport.address import join_address, split_address
from bitseam.transport.allow import Admission, Quota
from bitseam.transport.authority import make_certificates
from bitseam.transport.certs import Tls
from bitseam.transport.channel import Channel
from bitseam.transport.flow import HELD_BYTES
from bitseam.transport.grpc import Listener, connect
from bitseam.transport.memory import memory_pair
from bitseam.transport.ports import metrics_address, require_loopback, require_port

__all__ = [
    "HELD_BYTES",
    "Admission",
    "Channel",
    "Listener",
    "Quota",
    "Tls",
    "connect",
    "join_address",
    "make_certificates",
    "memory_pair",
    "metrics_address",
    "require_loopback",
    "require_port",
    "split_address",
]
