"""`bitseam new`: a recipe for the user's own model and data, with each key explained."""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bitseam import config
from bitseam.api.recipes import locate
from bitseam.console import Terminal
from bitseam.data.assets import ENTRIES
from bitseam.data.rows import scan_rows
from bitseam.errors import ConfigError, ModelError, printable

_USUAL = "smollm2"  # the recipe whose checkpoints are taken where none are named
_PICTURES = (224, 2)  # its vision model's own image_size, and a merge factor that divides its 16 patches along an edge
_PLAIN = "{image}Question: {question}\nAnswer:"  # for tokenizers without a chat template
_STEPS, _LEAST, _EPOCHS = 1000, 100, 3
stdout = Terminal()


def run_new(name: str, vision: str | None, language: str | None, train: str, test: str) -> None:
    """Write NAME.toml into the folder at hand, and print what to do next.

    vision, language: checkpoints as a recipe names them; only their configurations and tokenizers are read. A LLaVA for
    `vision` is the usual `language`, too. train, test: files of rows, which need not be there. Raises ConfigError where
    the name is no recipe's, is taken, or the file cannot be written; ModelError where a checkpoint cannot be used.
    """
    name = name.removesuffix(".toml")
    if name in config.shipped_recipes():
        raise ConfigError(f"{name} is a recipe that comes with Bitseam, and is found by that name: take another")
    file = Path(f"{name}.toml")
    values = {"name": name, "train": train, "test": test, **_models(vision, language), **_amounts(train)}
    text = _render(values)
    config.parse_recipe(tomllib.loads(text), printable(str(file)))  # nothing is written that cannot be read
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError as error:
        raise ConfigError(f"{file} is there already, and stays as it is: take another name, or move it away") from error
    _advise(file, [one for one in dict.fromkeys((values["vision"], values["language"])) if one in ENTRIES])


def _models(vision: str | None, language: str | None) -> dict[str, Any]:
    """What the recipe says of the two checkpoints."""
    usual = config.load_recipe(_USUAL)
    found = {
        "vision": usual.client.checkpoint,
        "pictures": _PICTURES,
        "language": usual.server.checkpoint,
        "width": usual.seam.width,
        "prompt": usual.text.prompt,
    }
    if vision:
        from bitseam.models.vision.half import suiting_pictures

        pictures = suiting_pictures(locate(vision))
        found |= {"vision": vision, "pictures": pictures}
        if pictures is None:
            language = language or vision
    if language:
        from bitseam.models.language.loading import embedding_width

        found |= {"language": language, "width": embedding_width(locate(language)), "prompt": _prompt(language)}
    return found


def _prompt(language: str) -> str:
    """`chat` where the tokenizer has a template of its own that takes a picture and a question."""
    from bitseam.text.prompts import Prompter

    try:
        Prompter(config.Text(language), locate)
    except ModelError:
        return _PLAIN
    return "chat"


def _amounts(train: str) -> dict[str, int]:
    """Steps and rows of a batch, by the number of usable rows where the file is here: a server may not have it."""
    rows, usual = len(scan_rows(train)[0]), config.Train(_STEPS).batch
    if not rows:
        return {"rows": 0, "steps": _STEPS, "batch": usual}
    batch = min(usual, rows)
    return {"rows": rows, "steps": max(_LEAST, math.ceil(_EPOCHS * rows / batch)), "batch": batch}


def _render(values: dict[str, Any]) -> str:
    room = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    room.filters["toml"] = _quoted
    return room.get_template("recipe.toml.j2").render(values)


def _quoted(text: str) -> str:
    """A string of TOML: that of JSON, but for one control character. Raises ConfigError where UTF-8 cannot hold it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{printable(text)}: a recipe cannot hold this name, which is not Unicode") from error
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _advise(file: Path, assets: list[str]) -> None:
    steps = [
        ("", f"read {file}: it explains each key"),
        *([(f"bitseam assets {' '.join(assets)}", "fetch the checkpoints")] if assets else []),
        ("bitseam certs certs", "make certificates, once"),
        (f"bitseam check {file}", "list all that is wrong, on either side"),
        (f"bitseam serve {file}", "on the machine of the language half"),
        (f"bitseam train {file}", "on the machine of the pictures"),
    ]
    width = max(len(command) for command, _ in steps)
    stdout.print(f"Wrote {file}. What to do next:", soft_wrap=True)
    for number, (command, what) in enumerate(steps, 1):
        stdout.print(f"  {number}. {f'{command:<{width}}  # {what}' if command else what}", soft_wrap=True)
