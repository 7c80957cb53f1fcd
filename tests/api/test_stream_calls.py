"""Calls of a stream at the wrong time: after its end, from two threads, too many at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from stream_models import pair, x

from bitseam.api import stream as module
from bitseam.errors import BusyError, ClosedError, UsageError


def test_after_close_every_call_is_refused() -> None:
    here, there = pair()
    message = here.encode(x())
    y = here(x())
    features = there.decode(message)
    features.sum().backward()
    back = there.encode_gradient(features)
    for side in (here, there):
        side.close()
        side.close()
    calls: list[tuple[str, Callable[[], object]]] = [
        ("forward", lambda: here(x())),
        ("encode", lambda: here.encode(x())),
        ("calibrate", lambda: here.calibrate(x())),
        ("retell", here.retell),
        ("backward", lambda: here.backward(back)),
        ("backward", lambda: y.sum().backward()),
        ("decode", lambda: there.decode(message)),
        ("encode_gradient", lambda: there.encode_gradient(features)),
    ]
    for name, call in calls:
        with pytest.raises(ClosedError, match=rf"{name}\(\): stream 'stream' is closed"):
            call()
    deepcopy(here)(x())  # a copy is open


def test_from_two_threads_the_second_is_refused() -> None:
    here, there = pair()
    message = here.encode(x())
    inside, go = threading.Event(), threading.Event()

    def wait(*_: object) -> None:
        inside.set()
        go.wait(20)

    for end in (here.sender, there.receiver):
        end.register_forward_hook(wait)
    for side, first, calls in (
        (here, lambda: here.encode(x()), [lambda: here(x()), lambda: here.encode(x()), here.retell, here.close]),
        (there, lambda: there.decode(message), [lambda: there.decode(message), there.close]),
    ):
        inside.clear()
        go.clear()
        thread = threading.Thread(target=first)
        thread.start()
        try:
            assert inside.wait(20)
            for call in calls:
                with pytest.raises(BusyError, match=r"stream 'stream' is in (encode|decode)\(\), of another thread"):
                    call()
        finally:
            go.set()
            thread.join(20)
        assert side.sent.up > 0
    here.encode(x())


def test_messages_that_nobody_answers_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IN_FLIGHT", 2)
    here, there = pair()
    messages = [here.encode(x(seed)) for seed in range(2)]
    with pytest.raises(UsageError, match=r"2 messages wait for their gradients; .* encode under torch.no_grad\(\)"):
        here.encode(x(2))
    with torch.no_grad():
        here.encode(x(2))
    features = there.decode(messages[0])
    features.sum().backward()
    here.backward(there.encode_gradient(features))
    here.encode(x(3))


def test_features_that_are_let_go_are_not_kept() -> None:
    here, there = pair()
    for _ in range(3):
        there.decode(here.encode(x()))
    assert len(there._decoded) == 0
