"""`bitseam check`: all that can be known before a run, told as it is found."""

from __future__ import annotations

from typing import Literal

from rich.text import Text

from bitseam import config
from bitseam.api.recipes import locate
from bitseam.checks.client import check_client
from bitseam.checks.findings import Checks, Finding
from bitseam.checks.network import own_certificates, reach, require_free
from bitseam.checks.places import require_folder
from bitseam.checks.server import check_server
from bitseam.console import Terminal
from bitseam.errors import AddressInUseError

Side = Literal["client", "server"]
stdout = Terminal()
_STYLES = {"right": "green", "wrong": "bold red", "not checked": "yellow"}


def run_check(recipe: config.Recipe, sides: tuple[Side, ...]) -> bool:
    """Look at each side, and print a line a finding. Returns whether nothing is wrong."""
    right = True
    for side in sides:
        stdout.print(Text(side, "bold"))
        checks = Checks(_show)
        checks.make("folder", lambda side=side: require_folder(recipe.folder, side), str)  # type: ignore[misc]
        if side == "client":
            check_client(recipe, locate, checks)
            usable = checks.right("certificates") or None  # told once where they are not
            checks.make(
                "server", lambda: reach(recipe.network, own_certificates(recipe.network, "client")), str, [usable]
            )
        else:
            checks.make("address", lambda: _address(recipe.network), str)
            check_server(recipe, locate, checks)
        right = right and checks.right()
    stdout.print(Text("nothing is wrong" if right else "see what is wrong above", "green" if right else "bold red"))
    return right


def _address(network: config.Network) -> str:
    """A server that runs already is no fault here."""
    try:
        require_free(network)
    except AddressInUseError as error:
        return str(error)
    return f"{network.address} is free"


def _show(finding: Finding) -> None:
    line = Text("  ")
    line.append(f"{finding.verdict:<12}", _STYLES[finding.verdict])
    line.append(f"{finding.subject}: " if finding.text else finding.subject, "bold")
    line.append(finding.text)
    stdout.print(line, soft_wrap=True)
