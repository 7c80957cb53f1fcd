"""`bitseam status`: a table of the sessions of a server on this machine."""

from __future__ import annotations

from datetime import timedelta

from rich.console import Console
from rich.table import Table

from bitseam import config
from bitseam.console import plain
from bitseam.serve.status import read_status


def show_status(recipe: config.Recipe, console: Console) -> None:
    """Raises PeerGoneError where no server runs."""
    server_step, sessions = read_status(recipe.folder / "server" / "metrics.json")
    names = ("client", "session", "since", "step", "steps/s", "MB up", "MB down", "times less")
    table = Table(*names, title=f"{recipe.name}: the server is at step {server_step:,}")
    for one in sessions:
        table.add_row(
            plain(one.client or "(none)"),
            plain(one.session),
            str(timedelta(seconds=round(one.seconds))),
            plain(one.purpose) if one.step is None else f"{one.step:,}",
            f"{one.rate:.1f}",
            f"{one.up_bytes / 1e6:.3f}",
            f"{one.down_bytes / 1e6:.3f}",
            f"{one.fp16_bytes / max(one.up_bytes + one.down_bytes, 1):.1f}",
        )
    console.print(table)
    if not sessions:
        console.print("Nobody is connected.")
