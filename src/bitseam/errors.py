"""Every error that Bitseam raises on purpose.

    BitseamError
    |-- CheckError           several things are wrong, found before anything was begun
    |-- ConfigError          a recipe or an option: unknown key, value out of range
    |-- AssetError           fetching weights or data
    |   |-- NoNetworkError       the registry cannot be reached
    |   |-- ChecksumError        what came is not what was pinned
    |   `-- DiskFullError        no room left in the cache
    |-- DataError            an image, a dataset row, a cached feature
    |-- ModelError           a checkpoint that cannot be split, loaded or merged
    |-- CodecError           a tensor that cannot be coded, or bytes that no encoder makes
    |   `-- NonFiniteError       NaN or infinity where a number must be
    |-- WireError            what a peer sent breaks the protocol
    |   |-- MalformedError       not a message
    |   |-- LimitError           over a limit, refused before memory is taken
    |   `-- StateError           a message that this state does not allow
    |-- RefusedError         the peer says no, and why (handshake differences, a fault in a step)
    |   `-- QuotaError           a client has used all that the server's allow-list grants it
    `-- TransportError       the way between the parties
        |-- AddressInUseError    the port is taken
        |-- UntrustedError       a certificate that the other side does not know
        |-- PeerGoneError        the peer went away
        `-- SessionLostError     the peer came back, but at an earlier step

The command line prints the message of any of them, without a traceback, and exits with status 1.
"""


class BitseamError(Exception):
    """Base of all; its text names the file, field or side at fault and what to do."""


class CheckError(BitseamError):
    """Several things are wrong, found before anything was begun; each is one of the errors below."""


class ConfigError(BitseamError):
    """A recipe or an option is wrong."""


class AssetError(BitseamError):
    """Weights or data could not be fetched or converted; the cache stays usable."""


class NoNetworkError(AssetError):
    """The registry cannot be reached."""


class ChecksumError(AssetError):
    """A downloaded file does not have the pinned SHA-256."""


class DiskFullError(AssetError):
    """The cache's disk is full."""


class DataError(BitseamError):
    """An image, a dataset row or a cached feature is unusable."""


class ModelError(BitseamError):
    """A checkpoint cannot be split, loaded or merged."""


class CodecError(BitseamError):
    """A tensor cannot be coded, or bytes are not what any encoder makes."""


class NonFiniteError(CodecError):
    """NaN or infinity where a number must be."""


class WireError(BitseamError):
    """What a peer sent breaks the protocol."""


class MalformedError(WireError):
    """Bytes that are no message of this protocol."""


class LimitError(WireError):
    """A size or count over a limit, refused before memory is taken."""


class StateError(WireError):
    """A message that the present state does not allow."""


class RefusedError(BitseamError):
    """The peer refuses, and says why."""


class QuotaError(RefusedError):
    """A client has used all that the server's allow-list grants it."""


class TransportError(BitseamError):
    """The way between the parties is broken."""


class AddressInUseError(TransportError):
    """The port is taken by another process."""


class UntrustedError(TransportError):
    """A certificate that the other side does not know."""


class PeerGoneError(TransportError):
    """The peer went away."""


class SessionLostError(TransportError):
    """The peer came back without memory of the session: both go on from the last checkpoint that both have."""
