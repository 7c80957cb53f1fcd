"""The sessions of a server: who is here, and what has crossed by client."""

from __future__ import annotations

import logging
import threading
from collections import Counter

from bitseam.errors import BitseamError
from bitseam.sessions.party import ServerParty
from bitseam.sessions.server import ServerSession
from bitseam.transport import Channel

log = logging.getLogger(__name__)

Crossed = Counter[tuple[str, str, str]]  # (client, direction, part with its codec) -> bytes


class Sessions:
    """Runs each session in the thread that its channel comes in, and knows which there are."""

    def __init__(self, party: ServerParty) -> None:
        self._party = party
        self._here: set[ServerSession] = set()
        self._gone, self._gone_fp16 = Crossed(), Crossed()  # of sessions that are over
        self._changed = threading.Condition()

    def __call__(self, channel: Channel) -> None:
        session = ServerSession(self._party, channel)
        with self._changed:
            self._here.add(session)
        try:
            session.run()
        except Exception as error:
            log.error("%s: %s", channel.peer, error, exc_info=not isinstance(error, BitseamError))
        else:
            log.info("%s: session over", channel.peer)
        finally:
            with self._changed:
                self._here.remove(session)
                for total, counted in zip((self._gone, self._gone_fp16), _crossed(session), strict=True):
                    total.update(counted)
                self._changed.notify_all()

    def here(self) -> list[ServerSession]:
        """Those that are open now."""
        with self._changed:
            return list(self._here)

    def crossed(self) -> tuple[Crossed, Crossed]:
        """Bytes of all sessions since the process began, and what they would have been at fp16."""
        with self._changed:
            totals = Crossed(self._gone), Crossed(self._gone_fp16)
            for session in self._here:
                for total, counted in zip(totals, _crossed(session), strict=True):
                    total.update(counted)
            return totals

    def wait_for_trainers(self, seconds: float) -> None:
        """Until no session trains any more, or the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: not any(session.training for session in self._here), seconds)


def _crossed(session: ServerSession) -> tuple[Crossed, Crossed]:
    counted = Crossed(), Crossed()
    for row in session.ledger.rows():
        place = session.client, str(row["direction"]), str(row["part"])
        counted[0][place] += int(row["bytes"])
        counted[1][place] += int(row["fp16_bytes"])
    return counted
