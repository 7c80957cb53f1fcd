"""What can be known of the server's side before a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bitseam import config
from bitseam.checks.findings import Checks
from bitseam.checks.network import may_speak, own_certificates, require_free, valid_until
from bitseam.checks.places import room_for_checkpoints, state_of
from bitseam.runs.checkpoint import Locate, build_server, held
from bitseam.sessions.party import ServerParty
from bitseam.text.prompts import Prompter
from bitseam.transport import Admission, Tls


@dataclass(frozen=True)
class ServerSide:
    """The server's part of a run as its checks have put it together. admission: None for plaintext."""

    party: ServerParty
    tls: Tls | None
    admission: Admission | None


def ready_server(recipe: config.Recipe, locate: Locate, checkpoint: Path | None = None) -> ServerSide:
    """The server's part, ready to listen. Raises all that is wrong with it, as `Checks.require` does."""
    checks = Checks()
    checks.make("address", lambda: require_free(recipe.network))
    side = check_server(recipe, locate, checks, checkpoint)
    checks.require()
    assert side is not None
    return side


def check_server(
    recipe: config.Recipe, locate: Locate, checks: Checks, checkpoint: Path | None = None
) -> ServerSide | None:
    """Look at the server's folder, certificates, allow-list and language half, which is loaded and proves itself.

    checkpoint: a folder to answer from, instead of the recipe's run. None where something is wrong.
    """
    folder = recipe.folder / "server"
    run = checks.make("run", lambda: held(recipe, "server"), lambda run: state_of(folder, *run))
    tls = checks.make("certificates", lambda: (own_certificates(recipe.network, "server"),), lambda t: valid_until(*t))
    admission = checks.make("allow-list", lambda: (may_speak(recipe.network, *tls or ()),), needs=[tls])
    prompter = checks.make("tokenizer", lambda: Prompter(recipe.text, locate), lambda p: f"{p.vocabulary:,} tokens")
    if run is None or prompter is None:  # the language model may be wrong as well
        checks.make("language model", lambda: build_server(recipe, locate), lambda model: "loads; it was not proven")
        return None
    party = checks.make("language model", lambda: ServerParty(recipe, locate, checkpoint), lambda p: str(p.proof))
    if party is None:
        return None
    if checkpoint is None:
        checks.make("free space", lambda: room_for_checkpoints(folder, party.model), str)
    if tls is None or admission is None:
        return None
    return ServerSide(party, tls[0], admission[0])
