"""Recipes: what a run is. Frozen dataclasses, TOML in, canonical JSON out.

Both parties read the same recipe file. What must be alike on both sides is compared in the handshake
(`bitseam.streams.seam.terms`); the rest, such as paths and learning rates, is each side's own.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from bitseam.errors import ConfigError, printable

_MOST_FAULTS = 20  # that an error names
_MOST_BYTES = 2**20  # of a recipe
# Python's reader of TOML takes gigabytes for keys of very many parts.
_DEEP_KEY = re.compile(r"""(?:\.[ \t]*(?:[\w-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')[ \t]*){20}""")
_strict = ConfigDict(extra="forbid")  # a misspelt option must never be silently ignored

Count = Annotated[int, Field(ge=1, le=2**53)]
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Levels = Annotated[int, Field(ge=2, le=65536)]
Share = Annotated[float, Field(ge=0, le=1)]
Multiple = Annotated[float, Field(ge=0.01, le=100)]
Plain = Annotated[str, Field(pattern=r"^[^\x00]*$")]  # a path or a name for the system, which takes no zero byte
Name = Annotated[Plain, Field(min_length=1)]
QuantizerName = Literal[
    "rd-fsq", "rd-fsq-tensor", "tanh-fsq", "learned-clip-fsq", "step-fsq", "rate-fsq", "fp32", "fp16", "bf16"
]
GradientName = Literal["stochastic", "entropy-stochastic", "fp32", "fp16", "bf16"]


@dataclass(frozen=True, config=_strict)
class Client:
    """The vision half.

    checkpoint: an asset of `bitseam assets`, a folder, or a model hub id; a vision tower that takes images alone
    (DINOv2, SigLIP, ViT, Swin, ConvNeXt, ...), or a LLaVA 1.5.
    The keys up to `connector_hidden` are for vision towers; a LLaVA checkpoint brings its own.
    """

    checkpoint: Name
    image_size: Count = 224  # pixels, the processor's framing scaled to them
    hidden_layer: int = -1  # which hidden state of the tower, as in `output_hidden_states`
    merge: Count = 1  # merge x merge neighbouring patch tokens become one
    connector_hidden: Count | None = None  # width between the two layers; the language model's width by default
    tune_vision: bool = False
    rate: Rate = 1e-3  # peak learning rate


@dataclass(frozen=True, config=_strict)
class Lora:
    """Low-rank adapters (Hu et al., arXiv 2106.09685), through peft.

    targets: `all-linear`, every linear layer but the head, with the experts of a mixture (without dropout);
    or names of layers, each of which must be there.
    """

    rank: Count = 16
    alpha: Count = 32
    dropout: Share = 0.0
    targets: Literal["all-linear"] | Annotated[tuple[Name, ...], Field(min_length=1)] = "all-linear"


@dataclass(frozen=True, config=_strict)
class Server:
    """The language half: an asset, a folder or a hub id of a causal language model, or a LLaVA."""

    checkpoint: Name
    tune: Literal["full", "lora", "frozen"] = "lora"
    lora: Lora = Lora()
    rate: Rate = 2e-4


@dataclass(frozen=True, config=_strict)
class Up:
    """How features cross: `rd-fsq` (the paper's, with per-channel statistics), `rd-fsq-tensor` (its own statistics),
    `tanh-fsq`, `learned-clip-fsq` (of each channel), `step-fsq` (a planned step each), `rate-fsq` (one step for all
    principal directions, bits in the loss), or a float format."""

    quantizer: QuantizerName = "rd-fsq"
    channels: Count | None = None  # the seam's width by default
    projection: Literal["learned", "fixed"] = "learned"  # maps around the levels; fixed: as they start, near identity
    levels: Levels = 4
    clip: Annotated[float, Field(gt=0, le=100)] = 1.5  # outermost level, in deviations; a learned clip starts there
    coding: Literal["packed", "entropy"] = "packed"  # codes at a fixed rate, or at their entropy (256 levels at most)
    groups: Annotated[int, Field(ge=1, le=4096)] = 16  # of channels, each with a table of its own; for entropy coding
    contexts: Annotated[int, Field(ge=1, le=15)] = 1  # odd; how many tables each group has, chosen by the left and the
    # upper token of an image; for entropy coding
    steps: tuple[Annotated[float, Field(ge=0, le=1000)], ...] = ()  # of `step-fsq`, in deviations; 0 drops a channel
    distortion_weight: Rate = 0.25  # in the loss; of `rate-fsq`'s mean bits an element
    rates: Annotated[tuple[Multiple, ...], Field(min_length=1, max_length=16)] = (1.0,)  # of `rate-fsq`: multiples of
    # its step; training draws one for each micro-batch
    rate: Annotated[int, Field(ge=0)] = 0  # which of `rates` questions are asked at

    def __post_init__(self) -> None:
        if self.quantizer == "rate-fsq" and (self.coding != "entropy" or self.levels % 2 == 0):
            raise ValueError("rate-fsq needs coding = 'entropy' and an odd number of levels")
        if self.rates != (1.0,) and self.quantizer != "rate-fsq":
            raise ValueError(f"rates are for the quantizer rate-fsq, not {self.quantizer}")
        if self.rate >= len(self.rates):
            raise ValueError(f"rate {self.rate}: there are {len(self.rates)} rates, from 0 on")
        if self.contexts % 2 == 0 or self.groups * self.contexts > 4096:
            raise ValueError("contexts must be an odd number, and groups x contexts at most 4096")
        if self.contexts > 1 and self.coding != "entropy":
            raise ValueError("contexts are for coding = 'entropy'")
        if self.steps and self.quantizer != "step-fsq":
            raise ValueError(f"steps are for the quantizer step-fsq, not {self.quantizer}")


@dataclass(frozen=True, config=_strict)
class Down:
    """How gradients cross."""

    codec: GradientName = "stochastic"
    levels: Levels = 4
    block: Literal["token"] | Count = "token"  # elements that share a scale
    step: Annotated[float, Field(ge=0.05, le=1000)] = 2.0  # of `entropy-stochastic`, in root mean squares of a message


@dataclass(frozen=True, config=_strict)
class Seam:
    """Where and how the model is cut.

    width: the language model's hidden size, which the client cannot look up.
    text: `ids` where the server may read the prompt, `codes` where it gets quantized embeddings. max_tokens: of an
    image; the server takes no more.
    """

    width: Count
    max_tokens: Count = 1024
    text: Literal["ids", "codes"] = "ids"
    image_up: Up = Up()
    image_down: Down = Down()
    text_up: Up = Up()
    text_down: Down = Down()

    def __post_init__(self) -> None:
        if self.text_up.contexts > 1:
            raise ValueError("text_up.contexts: tokens of text have none but 1")
        for name, up in (("image_up", self.image_up), ("text_up", self.text_up)):
            if up.steps and len(up.steps) != (up.channels or self.width):
                raise ValueError(f"{name}.steps: {len(up.steps)} steps for {up.channels or self.width} channels")


@dataclass(frozen=True, config=_strict)
class Text:
    """Tokenizer (asset, folder or hub id) and prompt.

    prompt: `chat` for the tokenizer's own chat template, or a template with {image} and {question}. max_answer_tokens:
    of an answer in an evaluation; as many as the longest right one has where it is left out.
    """

    tokenizer: Name
    prompt: Plain = "chat"
    max_tokens: Count = 512  # longest prompt with its answer; a longer row is refused
    max_answer_tokens: Count | None = None

    @property
    def most_new_tokens(self) -> int:
        """The most that one question may be answered with."""
        return max(self.max_tokens, 256, self.max_answer_tokens or 0)

    def __post_init__(self) -> None:
        if self.prompt != "chat" and not all(self.prompt.count(f) == 1 for f in ("{image}", "{question}")):
            raise ValueError("prompt must be 'chat' or hold {image} and {question} once each")


@dataclass(frozen=True, config=_strict)
class Data:
    """JSON Lines with `image`, `question`, `answer` and, for reports, `task`; image paths relative to the file.

    All rows and images are looked at before a run. bad_rows: `refuse` names all that cannot be used, `skip` leaves them
    out and lists them in OUT/client/bad_rows.jsonl.
    """

    train: Plain
    test: Plain = ""
    bad_rows: Literal["refuse", "skip"] = "refuse"
    cache_features: bool = True  # frozen vision features are kept on the client's disk
    workers: Annotated[int, Field(ge=0, le=256)] = 2  # processes that decode images ahead; 0: in the step's own thread


@dataclass(frozen=True, config=_strict)
class Train:
    """Training of both halves.

    sharing: with several clients, the server half takes their steps in the order in which they arrive, and each client
    keeps a half of its own (`sequential`), or client halves are averaged after each `round` (`averaged`: SplitFed,
    arXiv 2004.12088, its second version).
    """

    steps: Count
    batch: Count = 32
    accumulate: Count = 1  # micro-batches of `batch` a step
    warmup: Share = 0.03  # share of the steps
    weight_decay: Rate = 0.0
    clip_norm: Rate = 1.0  # of each half's gradient; 0 switches it off
    autocast: Literal["off", "bf16"] = "off"
    checkpoint_every: Count = 500
    clients: Count = 1  # that train the same server half, each with `steps` of its own; see `sharing`
    sharing: Literal["sequential", "averaged"] = "sequential"
    round: Count = 50  # steps between two averages
    calibrate: Count = 8  # batches that set the quantizer's statistics before the first step


@dataclass(frozen=True, config=_strict)
class Network:
    """Where the parties meet, and who may speak.

    certificates: a folder made by `bitseam certs`; empty for plaintext on loopback. allow_list: the server's file of
    clients, as `bitseam certs --fingerprints` prints it; empty for all clients of the authority. hello_seconds and
    idle_seconds: how long a server waits for a session's first message, and for each next one, which the client may
    have to compute; a client that is cut off comes back to where it was.
    """

    address: Plain = "localhost:50051"
    certificates: Plain = "certs"
    allow_list: Plain = ""
    metrics: Plain = "localhost:0"  # where the server tells its own machine how it is doing, over HTTP; empty: off
    plaintext_that_anyone_can_read_and_change: bool = False  # between machines, where `certificates` is empty
    patience: Annotated[float, Field(ge=0, le=1e6)] = 600.0  # seconds that a client goes on trying to reach its server
    keepalive: Annotated[float, Field(ge=0.1, le=1e6)] = 20.0  # seconds of silence until a peer is asked if it is there

    hello_seconds: Annotated[float, Field(gt=0, le=1e6)] = 30.0
    idle_seconds: Annotated[float, Field(gt=0, le=1e6)] = 3600.0

    def __post_init__(self) -> None:
        if self.allow_list and not self.certificates:
            raise ValueError("allow_list is of certificates: set network.certificates too")
        if self.plaintext_that_anyone_can_read_and_change and self.certificates:
            raise ValueError("plaintext_that_anyone_can_read_and_change: set network.certificates to '' if you mean it")


@dataclass(frozen=True, config=_strict)
class Recipe:
    """One run. `threads` is for each process; 0 leaves PyTorch's choice."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$", max_length=100)]
    client: Client
    server: Server
    seam: Seam
    text: Text
    data: Data
    train: Train
    network: Network = Network()
    out: Plain = ""  # folder of checkpoints and logs; runs/NAME by default
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0  # what TOML's integers hold
    threads: Annotated[int, Field(ge=0, le=4096)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @property
    def folder(self) -> Path:
        return Path(self.out or f"runs/{self.name}")


def load_recipe(path: str | Path, overrides: Mapping[str, Any] | None = None, plan: str | Path | None = None) -> Recipe:
    """Read a recipe; `plan`, a fragment of one, is laid over it, and over both `overrides`: dotted keys to values.

    Raises ConfigError that names the file and each wrong key.
    """
    raw = _read(path)
    if plan is not None:
        _lay_over(raw, _read(plan))
        path = f"{path} with {plan}"
    for key, value in (overrides or {}).items():
        _set(raw, key.split("."), value, path)
    return parse_recipe(raw, printable(str(path)))


def parse_recipe(raw: Mapping[str, Any], where: str) -> Recipe:
    """Check a nested mapping against the recipe's fields; `where` names it in errors."""
    try:
        return TypeAdapter(Recipe).validate_python(raw)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)
        lines = [_explain(item) for item in faults[:_MOST_FAULTS]]
        if len(faults) > _MOST_FAULTS:
            lines.append(f"and {len(faults) - _MOST_FAULTS:,} more")
        raise ConfigError(f"{where}: " + "; ".join(lines)) from error
    except RecursionError as error:
        raise ConfigError(f"{where}: it is nested too deeply") from error


def canonical(value: Any) -> str:
    """Dataclass, dict or list -> JSON with sorted keys and no spaces: equal values give equal text."""
    plain = dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _read(path: str | Path) -> dict[str, Any]:
    where = printable(str(path))
    try:
        with Path(path).open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
        text = raw.decode()
        if len(raw) > _MOST_BYTES or _DEEP_KEY.search(text):
            raise ConfigError(f"{where}: over {_MOST_BYTES:,} bytes, or a key of over 20 parts: not a recipe")
        return tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: cannot read the recipe: {printable(str(error))}") from error
    except RecursionError as error:
        raise ConfigError(f"{where}: it is nested too deeply") from error
    except ValueError as error:  # TOML's own, and numbers that Python does not read
        raise ConfigError(f"{where}: not valid TOML: {printable(str(error))}") from error


def _lay_over(raw: dict[str, Any], fragment: Mapping[str, Any]) -> None:
    for key, value in fragment.items():
        if isinstance(value, dict) and isinstance(raw.get(key), dict):
            _lay_over(raw[key], value)
        else:
            raw[key] = value


def _explain(item: Any) -> str:
    key = printable(".".join(str(part) for part in item["loc"] if not str(part).startswith("literal[")))
    if item["type"] == "unexpected_keyword_argument":
        return f"{key}: unknown key"
    if item["type"] == "missing":
        return f"{key}: missing"
    shown = "" if isinstance(item["input"], dict) else f" (got {_shown(item['input'])})"
    return f"{key}: {printable(item['msg'])}{shown}"


def _shown(value: Any) -> str:
    try:
        return printable(repr(value))
    except (ValueError, RecursionError):  # a number of very many digits, a list of very many lists
        return f"a very large {type(value).__name__}"


def _set(raw: dict[str, Any], keys: list[str], value: Any, path: str | Path) -> None:
    for key in keys[:-1]:
        raw = raw.setdefault(key, {})
        if not isinstance(raw, dict):
            raise ConfigError(printable(f"{path}: {'.'.join(keys)}: {key} is not a table"))
    raw[keys[-1]] = value
