"""Recipes: what a run is, as frozen dataclasses.

Both parties read the same recipe file. What must be alike on both sides is compared in the handshake
(`bitseam.sessions.terms`); the rest, such as paths and learning rates, is each side's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

_strict = ConfigDict(extra="forbid")  # a misspelt option must never be silently ignored

Count = Annotated[int, Field(ge=1, le=2**53)]
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Levels = Annotated[int, Field(ge=2, le=65536)]
Share = Annotated[float, Field(ge=0, le=1)]
Multiple = Annotated[float, Field(ge=0.01, le=100)]
Plain = Annotated[str, Field(pattern=r"^[^\x00]*$")]  # a path or a name for the system, which takes no zero byte
Name = Annotated[Plain, Field(min_length=1)]
QuantizerName = Literal["rd-fsq", "rd-fsq-tensor", "tanh-fsq", "learned-clip-fsq", "step-fsq", "rate-fsq", "none"]
STREAMS = ("image", "text")  # their order numbers those of a run
GRID_CODECS = ("uniform", "entropy-uniform")  # of levels on a grid, which a quantizer gives
_QUANTIZER_KEYS = ("levels", "clip", "distortion_weight")  # mean nothing without one; steps and rates are of one each


def _codec(usual: str) -> Callable[..., Any]:
    """What makes a codec's id, or its options alone, a table with an id."""

    def table(value: Any = None) -> Any:
        if isinstance(value, str):
            return {"id": value}
        return {"id": usual, **value} if isinstance(value, Mapping) else {"id": usual} if value is None else value

    return table


def _with_image(value: Any) -> Any:
    """Streams as a recipe names them, in their order; images always cross."""
    if not isinstance(value, Mapping):
        return value
    if unknown := [str(name) for name in value if name not in STREAMS]:
        raise ValueError(f"{', '.join(unknown)}: nothing of that name crosses; streams are {', '.join(STREAMS)}")
    return {name: value.get(name, {}) for name in STREAMS if name == "image" or name in value}


@dataclass(frozen=True, config=_strict)
class Client:
    """The vision half.

    checkpoint: an asset of `bitseam assets`, a folder, or a model hub id; a vision tower that takes images alone
    (DINOv2, SigLIP, ViT, Swin, ConvNeXt, ...), or a LLaVA 1.5.
    The keys up to `connector_hidden` are for vision towers; a LLaVA checkpoint brings its own, and takes no crops.
    """

    checkpoint: Name
    image_size: Count = 224  # pixels, the processor's framing scaled to them; of each crop, where images are cut
    crops: Count = 1  # an image is cut into crops x crops pictures, which the tower encodes each alone
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
class Stream:
    """How one kind of tensor crosses, and how its gradients come back.

    quantizer: `rd-fsq` (the paper's, with per-channel statistics), `rd-fsq-tensor` (its own statistics), `tanh-fsq`,
    `learned-clip-fsq` (of each channel), `step-fsq` (a planned step each), `rate-fsq` (one step for all principal
    directions, bits in the loss), or `none`: the codec takes the features as they are, or with fewer `channels` what
    a linear map makes of them.
    codec, gradient: a codec's id, or a table of its id and options (docs/codecs.md). After a quantizer, codes are
    written by `uniform`, at a fixed rate, or `entropy-uniform`, whose levels and clip are the quantizer's.
    """

    quantizer: QuantizerName = "rd-fsq"
    channels: Count | None = None  # the seam's width by default
    projection: Literal["learned", "fixed"] = "learned"  # maps around the levels; fixed: as they start, near identity
    levels: Levels = 4
    clip: Annotated[float, Field(gt=0, le=100)] = 1.5  # outermost level, in deviations; a learned clip starts there
    codec: Annotated[dict[str, Any], BeforeValidator(_codec("uniform"))] = Field(default_factory=_codec("uniform"))
    gradient: Annotated[dict[str, Any], BeforeValidator(_codec("stochastic"))] = Field(
        default_factory=_codec("stochastic")
    )
    steps: tuple[Annotated[float, Field(ge=0, le=1000)], ...] = ()  # of `step-fsq`, in deviations; 0 drops a channel
    distortion_weight: Rate = 0.25  # in the loss; of `rate-fsq`'s mean bits an element
    rates: Annotated[tuple[Multiple, ...], Field(min_length=1, max_length=16)] = (1.0,)  # of `rate-fsq`: multiples of
    # its step; training draws one for each micro-batch
    rate: Annotated[int, Field(ge=0)] = 0  # which of `rates` questions are asked at

    def __post_init__(self) -> None:
        kind = self.codec["id"]
        if self.quantizer == "none":
            if kind in GRID_CODECS:
                raise ValueError(f"codec {kind} writes a quantizer's levels: with quantizer = 'none' name another")
            usual = type(self)
            if idle := [key for key in _QUANTIZER_KEYS if getattr(self, key) != getattr(usual, key)]:
                raise ValueError(f"{', '.join(idle)}: a quantizer's; with quantizer = 'none' leave them out")
        elif kind not in GRID_CODECS:
            raise ValueError(
                f"codec {kind} takes features as they are: set quantizer = 'none', or one of {', '.join(GRID_CODECS)}"
            )
        elif given := {"levels", "clip", "tables"} & self.codec.keys():
            raise ValueError(f"codec: {', '.join(sorted(given))} are the quantizer's; set them beside it")
        if self.gradient["id"] == "delta":
            raise ValueError("gradient: codec delta is for what comes again, and gradients do not")
        if self.gradient["id"] in GRID_CODECS:
            raise ValueError(
                f"gradient: {self.gradient['id']} writes levels of a quantizer's grid, and gradients have no scale of "
                "their own: name another, such as 'stochastic'"
            )
        if self.quantizer == "rate-fsq" and (kind != "entropy-uniform" or self.levels % 2 == 0):
            raise ValueError("rate-fsq needs codec = 'entropy-uniform' and an odd number of levels")
        if self.rates != (1.0,) and self.quantizer != "rate-fsq":
            raise ValueError(f"rates are for the quantizer rate-fsq, not {self.quantizer}")
        if self.rate >= len(self.rates):
            raise ValueError(f"rate {self.rate}: there are {len(self.rates)} rates, from 0 on")
        if self.steps and self.quantizer != "step-fsq":
            raise ValueError(f"steps are for the quantizer step-fsq, not {self.quantizer}")


@dataclass(frozen=True, config=_strict)
class Seam:
    """Where the model is cut.

    width: the language model's hidden size, which the client cannot look up. max_tokens: of an image; the server takes
    no more.
    """

    width: Count
    max_tokens: Count = 1024


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
    """One run.

    streams: what crosses beside the ids of texts. `image` always does; where there is `text`, prompts cross as codes
    of their embeddings, and the server does not see their ids. threads: of each process; 0 leaves PyTorch's choice.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$", max_length=100)]
    client: Client
    server: Server
    seam: Seam
    text: Text
    data: Data
    train: Train
    streams: Annotated[dict[str, Stream], BeforeValidator(_with_image)] = Field(
        default_factory=lambda: {"image": Stream()}
    )
    network: Network = Network()
    out: Plain = ""  # folder of checkpoints and logs; runs/NAME by default
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0  # what TOML's integers hold
    threads: Annotated[int, Field(ge=0, le=4096)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        for name, stream in self.streams.items():
            due = stream.channels or self.seam.width
            if stream.steps and len(stream.steps) != due:
                raise ValueError(f"streams.{name}.steps: {len(stream.steps)} steps for {due} channels")
            if stream.quantizer == "none" and due == self.seam.width and stream.projection != "learned":
                raise ValueError(f"streams.{name}.projection: of all {due} channels nothing is projected")
            if name != "image" and stream.codec.get("contexts", 1) != 1:
                raise ValueError(f"streams.{name}.codec.contexts: only images have neighbours to choose tables by")
            if name != "image" and stream.codec["id"] == "delta":
                raise ValueError(f"streams.{name}.codec: codec delta is for images, which come again")

    @property
    def folder(self) -> Path:
        return Path(self.out or f"runs/{self.name}")
