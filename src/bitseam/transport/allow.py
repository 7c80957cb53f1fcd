"""Who may speak: an authority's clients, less those who are not on the list, and those whose certificate has expired or
was revoked. The files are read anew whenever they have changed.

    [[client]]
    name = "clinic-a"
    fingerprint = "..."                 # SHA-256 of the certificate, as `bitseam certs --fingerprints` prints it
    quota = { bytes = 20_000_000_000, steps = 5000, sessions = 2 }

    [[client]]
    name = "clinic-b"
    subject = "b.example"               # whoever the authority calls so
    revoked = true
"""

from __future__ import annotations

import logging
import threading
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Generic, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from bitseam.errors import ConfigError, UntrustedError
from bitseam.transport.certs import common_name, fingerprint

log = logging.getLogger(__name__)

T = TypeVar("T")
_strict = ConfigDict(extra="forbid")  # a misspelt line must not let anyone in

Count = Annotated[int, Field(ge=0)]


def may_name(name: str) -> bool:
    """Whether an entry of the list may call its client so."""
    return 1 <= len(name) <= 64 and name.isprintable() and name == name.strip() and "/" not in name


def _shown(name: str) -> str:
    if not may_name(name):
        raise ValueError("a name has 1 to 64 characters, no slash, no control characters, and no space at its ends")
    return name


Name = Annotated[str, AfterValidator(_shown)]
Fingerprint = Annotated[
    str,
    AfterValidator(lambda text: text.replace(":", "").lower()),
    Field(pattern=r"^([0-9A-Fa-f]{2}:?){31}[0-9A-Fa-f]{2}$"),
]


@dataclass(frozen=True, config=_strict)
class Quota:
    """What a client may use; None for no limit. bytes: of frames, both ways; sessions: at once."""

    bytes: Count | None = None
    steps: Count | None = None
    sessions: Count | None = None


@dataclass(frozen=True, config=_strict)
class Client:
    """One entry of the list: the certificate, by its fingerprint or by its subject's common name -> the client."""

    name: Name
    fingerprint: Fingerprint | None = None
    subject: str | None = None
    revoked: bool = False
    quota: Quota = Quota()

    def __post_init__(self) -> None:
        if (self.fingerprint is None) == (self.subject is None):
            raise ValueError(f"client {self.name}: give its fingerprint or its subject, and not both")


@dataclass(frozen=True, config=_strict)
class AllowList:
    """The whole file. `client = []` lets nobody in; a file without it is half written."""

    client: tuple[Client, ...]

    def __post_init__(self) -> None:
        for key in ("name", "fingerprint", "subject"):
            given = [value for client in self.client if (value := getattr(client, key)) is not None]
            if twice := {value for value in given if given.count(value) > 1}:
                raise ValueError(f"{key} {min(twice)} stands there twice")

    def find(self, certificate: bytes) -> Client | None:
        """The entry of a certificate in DER form: of its fingerprint, or else of its subject."""
        shown, subject = fingerprint(certificate), common_name(certificate)
        by_print = [client for client in self.client if client.fingerprint == shown]
        by_subject = [client for client in self.client if subject and client.subject == subject]
        return next(iter(by_print + by_subject), None)


class Admission:
    """Decides on certificates that gRPC has verified against `authority`.

    revocations: a PEM list (CRL, RFC 5280) of that authority, which need not be there. Raises ConfigError for a file
    that cannot be used now; one that breaks later is logged, and what it said before stays in force.
    """

    def __init__(self, authority: Path, revocations: Path, allow_list: Path | None = None) -> None:
        self._authorities = x509.load_pem_x509_certificates(authority.read_bytes())
        self._revocations = _Watched(revocations, self._parse_revocations)
        self._revocations.load(needed=False)
        self._list = None
        if allow_list is None:
            log.info("no network.allow_list: every client whose certificate %s has signed may speak", authority)
        else:
            self._list = _Watched(allow_list, _parse_list)
            self._list.load()

    def admit(self, certificate: bytes) -> str:
        """A certificate in DER form -> the client's name. Raises UntrustedError with the reason, for our log alone,
        ValueError for a certificate that cannot be read."""
        parsed, now = x509.load_der_x509_certificate(certificate), datetime.now(UTC)
        if not parsed.not_valid_before_utc <= now <= parsed.not_valid_after_utc:
            raise UntrustedError(
                f"its certificate is valid from {parsed.not_valid_before_utc} to {parsed.not_valid_after_utc} alone"
            )
        revoked = self._revocations.current()
        if revoked is not None and revoked.issuer == parsed.issuer:
            entry = revoked.get_revoked_certificate_by_serial_number(parsed.serial_number)
            if entry is not None:
                raise UntrustedError(f"its certificate was revoked at {entry.revocation_date_utc}")
        if self._list is None:
            return common_name(certificate) or f"sha256-{fingerprint(certificate)[:16]}"
        client = self._entries().find(certificate)
        if client is None:
            raise UntrustedError(f"its certificate is not on the allow-list; SHA-256 {fingerprint(certificate)}")
        if client.revoked:
            raise UntrustedError(f"the allow-list has revoked {client.name}")
        return client.name

    def quota(self, name: str) -> Quota:
        """What the list grants to the client of this name now; no limit where there is no list."""
        return next((client.quota for client in self._entries().client if client.name == name), Quota())

    def _entries(self) -> AllowList:
        return (self._list.current() if self._list is not None else None) or AllowList(())

    def _parse_revocations(self, raw: bytes) -> x509.CertificateRevocationList:
        found = x509.load_pem_x509_crl(raw)
        issuers = [ca.public_key() for ca in self._authorities if ca.subject == found.issuer]
        if not any(found.is_signature_valid(key) for key in issuers):  # type: ignore[arg-type]
            raise ValueError("not signed by our authority")
        if found.next_update_utc is not None and found.next_update_utc < datetime.now(UTC):
            log.warning("the authority should have renewed its list of revoked certificates: it is still in force")
        return found


class _Watched(Generic[T]):
    """A file's meaning, parsed anew when its bytes have changed."""

    def __init__(self, path: Path, parse: Callable[[bytes], T]) -> None:
        self._path, self._parse = path, parse
        self._raw: bytes | None = None
        self._value: T | None = None
        self._trouble = ""
        self._lock = threading.Lock()

    def load(self, needed: bool = True) -> None:
        """Raises ConfigError where the file cannot be used; the value then stays what it was.

        needed: it must be there; if not, it must not go away once it was.
        """
        try:
            raw = self._path.read_bytes()
            if raw != self._raw:
                self._value, self._raw = self._parse(raw), raw
                log.info("read %s", self._path)
        except FileNotFoundError as error:
            if needed or self._raw is not None:
                raise ConfigError(f"{self._path}: is not there") from error
        except ValidationError as error:
            faults = (f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
            raise ConfigError(f"{self._path}: {'; '.join(faults)}") from error
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ConfigError(f"{self._path}: cannot be used: {error}") from error

    def current(self) -> T | None:
        """What the file says now, or said when it was last sound; None where it never was there."""
        with self._lock:
            try:
                self.load(needed=False)
                self._trouble = ""
            except ConfigError as error:
                if str(error) != self._trouble:
                    self._trouble = str(error)
                    log.error("%s; what it said before stays in force", error)
            return self._value


def _parse_list(raw: bytes) -> AllowList:
    return TypeAdapter(AllowList).validate_python(tomllib.loads(raw.decode("utf-8")))
