"""Every error that Bitseam raises on purpose.

    BitseamError
    |-- CheckError           several things are wrong, found before anything was begun
    |-- ConfigError          a recipe or an option: unknown key, value out of range
    |   `-- ClaimedError         another process runs in the folder
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

The command line prints the message of any of them, without a traceback, and exits with status 1. What others wrote goes
into such a message, or into a log, through `printable`, and what their code raised through `first_sentence`.
"""

import re
import unicodedata

# Of formatting characters, those that turn the order of the text behind them: right-to-left overrides, isolates.
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_UNSEEN = frozenset({"Cc", "Cs", "Zl", "Zp"})  # control characters, lone surrogates, line and paragraph separators
_SENTENCE_END = re.compile(r"(?<=[.!?])\s")


def printable(text: str, most: int | None = 300, lines: bool = False) -> str:
    """What others wrote, for a message, a log or a terminal: it steers nothing, and does not go on for ever.

    Control characters (escape sequences, carriage returns), lone surrogates and what turns the direction of writing are
    spelt out, as in "\\x1b". most: characters to show, None for all; lines: keep line feeds and tabs.
    """
    cut = text if most is None or len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"
    if cut.isprintable():
        return cut
    return "".join(c if _shows(c) or (lines and c in "\n\t") else ascii(c)[1:-1] for c in cut)


def first_sentence(error: BaseException, most: int = 300, named: bool = False) -> str:
    """What an error says that others' code has raised, as a part of one line: the rest may go on for pages.

    named: with the error's class in front, as it stands there in any case where the text is empty or a key alone.
    """
    said = _SENTENCE_END.split(" ".join(str(error).split()), maxsplit=1)[0].rstrip(".:; ")
    kind = "" if said and not named and not isinstance(error, KeyError) else type(error).__name__
    return ": ".join(filter(None, (kind, printable(said, most))))


def _shows(character: str) -> bool:
    return unicodedata.category(character) not in _UNSEEN and character not in _TURNING


class BitseamError(Exception):
    """Base of all; its text names the file, field or side at fault and what to do."""


class CheckError(BitseamError):
    """Several things are wrong, found before anything was begun; each is one of the errors below."""


class ConfigError(BitseamError):
    """A recipe or an option is wrong."""


class ClaimedError(ConfigError):
    """Another process runs in the folder."""


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
