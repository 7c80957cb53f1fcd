"""The seam alone, inside a PyTorch model of somebody's own: low-bit codes forward, low-bit gradients back.

Shapes: features x (..., D), leading dimensions free, channels last; levels (..., C).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

from bitseam import config
from bitseam.api.crossing import Incoming, Outgoing, known
from bitseam.api.guard import Guard
from bitseam.api.sent import Sent
from bitseam.errors import CodecError, ConfigError, UsageError
from bitseam.quant import Quantized
from bitseam.streams import Receiver, Sender

IN_FLIGHT = 256  # messages that may wait for their gradients


class Keys(TypedDict, total=False):
    """Those of a table `[streams.NAME]` of a recipe; `bitseam.config.Stream` says what each means."""

    quantizer: config.QuantizerName
    channels: int | None
    projection: Literal["learned", "fixed"]
    levels: int
    clip: float
    codec: str | Mapping[str, Any]
    gradient: str | Mapping[str, Any]
    steps: Sequence[float]
    distortion_weight: float
    rates: Sequence[float]
    rate: int


class Stream(nn.Module):
    """Both ends of a stream. In one process, x crosses the seam in `y = stream(x)` and the gradient comes back over it.
    In two, each has a Stream of the same settings:

        message = stream.encode(x)               # the sending side
        features = other.decode(message)         # the receiving side, which goes on, and calls loss.backward()
        back = other.encode_gradient(features)
        stream.backward(back)                    # the sending side again

    Both ways give the same numbers: levels, gradients and bytes. The first batch in training calibrates, or `calibrate`
    does. sender, receiver: the two ends, modules. Parameters and statistics stay float32 whatever the model is cast to.

    Beside the errors named below, any call raises ClosedError after `close`, and BusyError while another thread is in
    one.
    """

    calibrated: Tensor
    _distortion: Tensor | None

    def __init__(self, width: int, name: str = "stream", **keys: Unpack[Keys]) -> None:
        """width: D. name: in errors, and for the other side to tell this stream from others of the same settings.

        keys: of a recipe's table of a stream, with the same defaults. Raises ConfigError that names what is wrong.

        >>> stream = Stream(768, channels=96, levels=4, codec="uniform", gradient="stochastic")
        """
        super().__init__()
        if type(width) is not int or width < 1:
            raise ConfigError(f"Stream: width: a whole number from 1 on (got {width!r})")
        if not isinstance(name, str) or not name:
            raise ConfigError(f"Stream: name: text (got {name!r})")
        self.settings = config.parse_stream(keys, "Stream")
        self.width, self.name = width, name
        try:
            self.sender = Sender(name, 0, self.settings, width)
            self.receiver = Receiver(name, 0, self.settings, width)
        except CodecError as error:
            raise ConfigError(f"Stream: {error}") from error
        except ConfigError as error:
            raise ConfigError(f"Stream: {str(error).removeprefix(f'streams.{name}.')}") from error
        self.register_buffer("calibrated", torch.tensor(False))
        self._what, self._guard, self._sent = f"stream {name!r}", Guard(f"stream {name!r}"), Sent()
        self._out, self._in = Outgoing(self.sender, self._what), Incoming(self.receiver, self._what)
        self._under_way()

    @property
    def sent(self) -> Sent:
        """What has crossed so far."""
        return Sent(**vars(self._sent))

    @property
    def distortion(self) -> Tensor:
        """The quantizer's own loss () of the features that were encoded last, times `distortion_weight`: to be added to
        the loss of the side that encodes. Raises UsageError before any."""
        if self._distortion is None:
            raise UsageError(f"{self._what}: no features have been encoded, so there is no distortion yet")
        return self._distortion

    def extra_repr(self) -> str:
        """What differs from a recipe's defaults, and the width."""
        usual = config.Stream()
        named = {field.name: getattr(self.settings, field.name) for field in fields(usual)}
        own = [f"{key}={value!r}" for key, value in named.items() if value != getattr(usual, key)]
        return ", ".join([str(self.width), repr(self.name), *own])

    def close(self) -> None:
        """Take no more calls, and let go of what is under way. Raises BusyError while there is a call."""
        if self._guard.close():
            self._under_way()

    def calibrate(self, x: Tensor) -> None:
        """Fit statistics and tables to features x (..., D) of at least two tokens; nothing is sent.

        Raises CodecError for another width or fewer tokens, NonFiniteError for NaN or infinity.
        """
        with self._guard("calibrate()"), torch.no_grad():
            self._calibrate(self._checked(x))

    def retell(self) -> None:
        """Have the next messages tell anew all that the other side must know to read them: it has begun anew, or a
        message was lost. With the codec delta, both sides call this, and remember no samples."""
        with self._guard("retell()"):
            self._out.forget()
            self._in.forget()

    @torch.compiler.disable
    def forward(self, x: Tensor, samples: Sequence[int] = ()) -> Tensor:
        """x (..., D) -> (..., D) in the dtype of x, through bytes; so does the gradient by the levels on its way back.

        samples: the number of each item of x, for the codec `delta` in training. Raises as `encode` and `decode` do;
        backward raises NonFiniteError for a gradient that is not finite.
        """
        with self._guard("forward()"):
            quantized = self._quantize(x, samples)
            message = self._out.message(quantized, known(self.receiver, self.sender.rate))
            self._sent.count_up(message, x.shape)
            levels: Tensor = _Crossing.apply(quantized.levels, self, message)
            return self._project(levels).to(x.dtype)

    def encode(self, x: Tensor, samples: Sequence[int] = ()) -> bytes:
        """x (..., D) -> a message with all that the other side must know and has not been told.

        Where gradients are enabled, the message waits for its own in `backward`. samples: as of `forward`. Raises
        CodecError for another width, NonFiniteError for NaN or infinity, and UsageError for what is no tensor of
        floats on the stream's device, for samples that are missing, or where very many messages wait.
        """
        with self._guard("encode()"):
            waits = torch.is_grad_enabled()
            if waits and len(self._in_flight) == IN_FLIGHT:
                raise UsageError(
                    f"{self._what}: {IN_FLIGHT} messages wait for their gradients; call backward() for each, and "
                    "encode under torch.no_grad() what no gradient comes back for"
                )
            quantized = self._quantize(x, samples)
            message = self._out.message(quantized)
            self._sent.count_up(message, x.shape)
            if waits:
                self._in_flight[message[:8]] = quantized
            return message

    def decode(self, message: bytes) -> Tensor:
        """A message of the other side -> features (..., D) float32, for whose gradient `encode_gradient` waits.

        Messages are decoded in the order of encoding: later ones may rest on what earlier ones told. Raises StateError
        where that is missing, MalformedError for what is no message, WireError for one of another stream, LimitError
        for one of too many values, and CodecError for codes that no encoder makes.
        """
        with self._guard("decode()"):
            tag, levels = self._in.read(message, self.calibrated.device)
            levels.requires_grad_(torch.is_grad_enabled())
            features = self._project(levels)
            if torch.is_grad_enabled():
                self._decoded[features] = tag, levels
            self._sent.count_up(message, features.shape)
            return features

    def encode_gradient(self, features: Tensor) -> bytes:
        """The very tensor that `decode` gave, after backward() of the loss -> a message with its gradient, once.

        Raises UsageError for another tensor, a second time or before backward(), and NonFiniteError.
        """
        with self._guard("encode_gradient()"):
            if not isinstance(features, Tensor) or features not in self._decoded:
                raise UsageError(
                    f"{self._what}: encode_gradient() takes the tensor that decode() gave, with gradients enabled, once"
                )
            tag, levels = self._decoded[features]
            if levels.grad is None:
                raise UsageError(f"{self._what}: no gradient has reached these features; call loss.backward() first")
            back = self._in.gradient(tag, levels.grad)
            del self._decoded[features]
            self._sent.count_down(back, features.shape)
            return back

    def backward(self, back: bytes, loss: Tensor | None = None) -> None:
        """Run backward of what was encoded, from the gradient that came back, in any order of messages.

        loss: a scalar of this side that is minimised too, such as the `distortion` of that message. Raises UsageError
        for a gradient that no message waits for, CodecError for another shape, and as `decode` does.
        """
        with self._guard("backward()"):
            tag, coded = self._out.about(back)
            if (quantized := self._in_flight.get(tag)) is None:
                raise UsageError(
                    f"{self._what}: no message waits for this gradient: it came twice, before its message was encoded, "
                    "or the message was encoded under torch.no_grad()"
                )
            gradient = self.sender.gradient(coded, quantized)
            del self._in_flight[tag]
            self._sent.count_down(back, (*gradient.shape[:-1], self.width))
        # Not in the guard: the way back may lead through this stream again, in a thread of autograd's.
        given: list[tuple[Tensor, Tensor | None]] = [(quantized.levels, gradient)]
        given += [] if loss is None else [(loss, None)]
        if kept := [pair for pair in given if pair[0].requires_grad]:
            torch.autograd.backward([output for output, _ in kept], [by for _, by in kept])

    def _checked(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            came = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
            raise UsageError(f"{self._what}: features are a tensor of floating-point numbers, not {came}")
        if x.device != self.calibrated.device:
            where = self.calibrated.device
            raise UsageError(f"{self._what} is on {where}, the features on {x.device}: move one of them")
        if x.ndim == 0 or x.shape[-1] != self.width:
            raise CodecError(
                f"{self._what}: features of shape {tuple(x.shape)} do not end in the width {self.width}; channels of "
                "images go last: x.movedim(1, -1)"
            )
        return x

    def _calibrate(self, x: Tensor) -> None:
        quantizer, training = self.sender.quantizer, self.sender.quantizer.training
        self._in.forget()  # samples, as the sender does
        self.sender.calibrate(x)
        quantizer.eval()  # what is coded here is not counted again
        try:
            for rate in range(self.sender.rates):
                self.sender.use(rate)
                self.sender.renew(self.sender(x))
        finally:
            quantizer.train(training)
        self.calibrated.fill_(True)

    def _quantize(self, x: Tensor, samples: Sequence[int]) -> Quantized:
        sender, x, rate, samples = self.sender, self._checked(x), self.settings.rate, tuple(samples)
        if self.training:
            if sender.remembers and len(samples) != len(x):
                raise UsageError(
                    f"{self._what}: the codec delta needs the number of each item in training: samples=[...] of "
                    f"{len(x)} numbers (got {len(samples)})"
                )
            if not self.calibrated:
                with torch.no_grad():
                    self._calibrate(x)
            if sender.rates > 1:
                rate = int(torch.randint(sender.rates, ()))
        sender.begin(None, samples)
        sender.use(rate)
        quantized = sender(x)
        if self.training:
            sender.renew(quantized)
        self._distortion = self.settings.distortion_weight * quantized.distortion
        return quantized

    def _project(self, levels: Tensor) -> Tensor:
        with torch.autocast(levels.device.type, enabled=False):
            return self.receiver(levels)

    def _under_way(self) -> None:
        """Nothing is, from now on."""
        self._in_flight: dict[bytes, Quantized] = {}
        self._decoded = WeakTensorKeyDictionary()
        self._distortion = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Stream:
        def kept(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(kept, recurse)

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy: all but what is under way, which is of this one's graph."""
        state = dict(vars(self))
        for name in ("_in_flight", "_decoded", "_distortion"):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._under_way()


class _Crossing(torch.autograd.Function):
    """Levels (..., C) -> themselves, as they are read from a message; the gradient likewise, on its way back."""

    @staticmethod
    def forward(ctx: Any, levels: Tensor, stream: Stream, message: bytes) -> Tensor:
        ctx.stream = stream
        ctx.tag, received = stream._in.read(message, levels.device)
        return received

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        stream: Stream = ctx.stream
        with stream._guard("backward()"):
            back = stream._in.gradient(ctx.tag, gradient)
            stream._sent.count_down(back, (*gradient.shape[:-1], stream.width))
            coded = stream._out.about(back)[1]
            return stream.sender.gradient(coded, Quantized(gradient, gradient)), None, None
