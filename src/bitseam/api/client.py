"""The vision half and the images, at one end of a session."""

from __future__ import annotations

import atexit
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch
from PIL import Image
from torch import Tensor

from bitseam import config
from bitseam.api.answer import Answer, Count, Crossed
from bitseam.api.guard import Guard
from bitseam.api.opening import opened_to_ask, opened_to_train, require_questions
from bitseam.api.recipes import as_recipe
from bitseam.checks.client import ClientSide, Purpose, stores_features
from bitseam.data.assets import cache_folder
from bitseam.data.batches import Batches
from bitseam.data.features import Features, LiveFeatures, StoredFeatures
from bitseam.data.images import open_image
from bitseam.errors import BitseamError, BusyError, SessionLostError, UsageError
from bitseam.evals import Evaluation, answer_room, evaluate
from bitseam.models.client import ClientModel
from bitseam.sessions.client import ClientSession
from bitseam.sessions.ledger import Ledger
from bitseam.text.answer_stream import AnswerStream
from bitseam.text.batch import TextBatch
from bitseam.train import Callback, Micro, StepRecord, Training

_BETWEEN_STEPS = ("ask()", "stream()", "evaluate()", "save()")  # what a callback may call


class Client:
    """Holds the vision half and the images, with a session to the server that has the language half.

    >>> with Client.open("demo") as client:
    ...     print(client.ask("photo.png", "What is in the picture?"))

    Calls raise ClosedError after `close`, and BusyError where another thread is in one, or from inside of one. From a
    callback of `train` a client may be asked, evaluated and saved. Where the link breaks, it is made again for
    `network.patience` seconds; PeerGoneError comes after that, RefusedError where the server refuses.
    """

    def __init__(
        self,
        recipe: config.Recipe,
        purpose: Purpose,
        side: ClientSide,
        session: ClientSession,
        held: ExitStack,
        progress: bool,
    ) -> None:
        """Of `open`. held: what there is to end, last first, the session among it."""
        self.recipe, self.purpose = recipe, purpose
        self._side, self._session, self._held, self._progress = side, session, held, progress
        self._guard = Guard("this client")
        self._answer: Answer | None = None  # the one that may not have ended
        atexit.register(self.close)  # while threads still run: the interpreter's own clearing up would wait for ever

    @classmethod
    def open(
        cls,
        recipe: config.Recipe | str | Path | Mapping[str, Any],
        checkpoint: str | Path | None = None,
        *,
        purpose: Purpose = "ask",
        progress: bool = False,
    ) -> Client:
        """Check everything, load the vision half and connect to the recipe's server, waiting for one to come.

        recipe: what `load_recipe` gives or takes. checkpoint: a folder of the client's half; by default the newest of
        the recipe's run. purpose: "train", which goes on where the recipe's folder ends and can do all the rest too,
        "evaluate" on the recipe's test file and ask, or "ask" alone. progress: show bars. Raises what is wrong,
        CheckError for several things, before the server is asked; RefusedError where the two sides differ.
        """
        recipe = as_recipe(recipe)
        if purpose not in get_args(Purpose):
            raise UsageError(f"purpose {purpose!r}: {', '.join(map(repr, get_args(Purpose)))}")
        if purpose == "train" and checkpoint is not None:
            raise UsageError("checkpoint: a client that trains goes on where the recipe's folder ends; leave it out")
        with ExitStack() as stack:
            if purpose == "train":
                side, session = stack.enter_context(opened_to_train(recipe))
            else:
                folder = Path(checkpoint) if checkpoint is not None else None
                side, session = stack.enter_context(opened_to_ask(recipe, purpose, folder))
            return cls(recipe, purpose, side, session, stack.pop_all(), progress)

    @property
    def model(self) -> ClientModel:
        """The vision half with the streams' sending ends, an `nn.Module`."""
        return self._side.model

    @property
    def reached(self) -> int:
        """The last whole step of the pair."""
        return self._session.reached

    @property
    def run(self) -> str:
        """The name of the run that the pair of halves is of, in hex; "" for one that nobody has trained."""
        return self._session.run

    @property
    def bad_rows(self) -> int:
        """How many rows of the recipe's files are left out (`data.bad_rows`)."""
        return len(self._side.rows.bad)

    @property
    def sent(self) -> Crossed:
        """What has gone up in all, and in a run that is gone on with, before."""
        return Count(self.ledger, begun=False)("up")

    @property
    def received(self) -> Crossed:
        """What has come down, likewise."""
        return Count(self.ledger, begun=False)("down")

    @property
    def ledger(self) -> Ledger:
        """What has crossed, by direction, kind of message and part."""
        return self._session.ledger

    @property
    def socket_bytes(self) -> tuple[int, int] | None:
        """(sent, received) on the network, TLS and HTTP/2 included; None where the system does not tell."""
        return self._session.socket_bytes()

    def ask(self, image: Image.Image | str | Path, question: str, max_new_tokens: int = 64) -> Answer:
        """The whole answer to a question about an image: codes up, tokens back.

        image: a picture, or the path of its file. Raises DataError for one that cannot be read and for a question that
        is too long, UsageError for arguments of another type.
        """
        with self._call("ask()"):
            answer = self._ask(image, question, max_new_tokens)
            answer.finish()
            return answer

    def stream(self, image: Image.Image | str | Path, question: str, max_new_tokens: int = 64) -> Answer:
        """As `ask`, but the answer is given before it is there: iterate over its pieces of text.

        The question is sent when the first of them is asked for. Another call lets the answer end first.
        """
        with self._call("stream()"):
            self._answer = self._ask(image, question, max_new_tokens)
            return self._answer

    def train(self, steps: int | None = None, callbacks: Sequence[Callback] = ()) -> Path:
        """Take `steps` steps of the recipe's training, or all that are left; returns the folder of the client's half.

        Both halves are checkpointed every so many steps, and at the end. callbacks: each is called with the StepRecord
        of each step; one that returns something true ends the training after that step. Raises UsageError for a client
        that was not opened to train, NonFiniteError where the training diverges, and what a callback raises.
        """
        if steps is not None and (type(steps) is not int or steps < 1):
            raise UsageError(f"steps {steps!r}: a whole number from 1 on, or None for all that are left")
        if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
            raise UsageError("callbacks: a list of functions of a StepRecord")
        with self._call("train()", "train"):
            return self._training.run(steps, callbacks)

    def batches(self) -> Iterator[Iterable[Micro]]:
        """The recipe's batches that are left, in order, each for one `step`, in a loop of your own.

        A batch gives its micro-batches, each once and when it is asked for: tower features (I, M, Dv) of I images, and
        a TextBatch of the questions and answers about them. Where `step` has raised SessionLostError, this goes back
        with the server.
        """
        drawn = None
        while True:
            with self._call("batches()", "train"):
                if self._training.over:
                    return
                if drawn == self.reached and self._training.begun:
                    raise UsageError("batches(): the last batch was not given to step(), and each must be")
                self._training.begin()
                drawn, batch = self.reached, self._training.draw()
            yield batch

    def step(self, batch: Iterable[Micro]) -> StepRecord:
        """One step of both halves' optimisers, with checkpoints where the recipe has them due.

        Raises SessionLostError where the server has come back at an earlier step: go on with the next of `batches`.
        Raises UsageError for something that is no batch or was used before.
        """
        if not isinstance(batch, Iterable):
            raise UsageError(f"batch: one of batches(), or micro-batches of your own; not {type(batch).__name__}")
        with self._call("step()", "train"):
            if self._training.over:
                raise UsageError(f"step(): all {self.recipe.train.steps} steps of the recipe are taken (train.steps)")
            record = self._training.step(map(_checked, batch))
            self._training.keep()
            return record

    def save(self) -> Path:
        """Write both halves at the present step; returns the folder of the client's."""
        with self._call("save()", "train"):
            self._training.begin()
            return self._training.save()

    def evaluate(self) -> Evaluation:
        """Ask every question of the recipe's test file, and score the answers by exact match.

        Raises UsageError for a client that was opened to ask alone, ConfigError where there is no such file.
        """
        with self._call("evaluate()", "train", "evaluate"):
            rows, prompter = self._side.rows.test, self._side.prompter
            require_questions(rows)
            room = answer_room(prompter, rows, self.recipe.text)
            self._get_ready()
            with torch.no_grad():
                return evaluate(self._session, prompter, rows, self._features.of, longest=room, progress=self._progress)

    def close(self) -> None:
        """Say goodbye to the server. A second call is none. Steps since the last checkpoint are lost."""
        self.__exit__(None, None, None)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *failure: Any) -> None:
        if self._guard.close():
            atexit.unregister(self.close)
            self._held.__exit__(*failure)  # the server is told what kind of error it was

    @cached_property
    def _features(self) -> Features:
        if stores_features(self.recipe):
            return StoredFeatures(self.model.vision, self._side.rows.contents, cache_folder() / "features")
        return self._held.enter_context(closing(LiveFeatures(self.model.vision, self.recipe.data.workers)))

    @cached_property
    def _training(self) -> Training:
        recipe, features = self.recipe, self._features
        rows, prompter = self._side.rows.train, self._side.prompter
        batches = Batches(rows, features, prompter, recipe.train.batch, recipe.seed, features.ahead)
        return Training(self._session, recipe, batches, self._progress)

    @contextmanager
    def _call(self, name: str, *purposes: Purpose) -> Iterator[None]:
        """While a call lasts: one at a time, of a client that was opened for it, after the answer under way."""
        with self._guard(name) as outer:
            if purposes and self.purpose not in purposes:
                raise UsageError(
                    f"{name}: this client is open to {self.purpose}; open one with purpose={purposes[0]!r}"
                )
            if outer and not (outer == "train()" and name in _BETWEEN_STEPS):
                raise BusyError(f"{name}: this client is in {outer}; end that first")
            with self._following():
                if self._answer is not None:
                    self._answer.finish()
                yield

    @contextmanager
    def _following(self) -> Iterator[None]:
        """The training goes back where the server has; after a call that was broken off, the next connects anew."""
        try:
            yield
        except SessionLostError:
            if (training := vars(self).get("_training")) is not None:
                training.go_back()
            raise
        except BaseException as error:
            if not isinstance(error, BitseamError):  # an interrupt, say, while a message was waited for
                self._session.hang_up()
            raise

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._guard("reading an answer"), self._following():
            yield

    def _get_ready(self) -> None:
        """For questions: be the half that the server has the other one of, without dropout until the next step."""
        if self.purpose == "train":
            self._training.begin()
        self.model.eval()

    def _ask(self, image: Image.Image | str | Path, question: str, max_new_tokens: int) -> Answer:
        if not isinstance(question, str):
            raise UsageError(f"question: a text, not {type(question).__name__}")
        most = self.recipe.text.most_new_tokens
        if type(max_new_tokens) is not int or not 0 < max_new_tokens <= most:
            raise UsageError(f"max_new_tokens {max_new_tokens!r}: from 1 to {most}, which the server gives at the most")
        text = self._side.prompter.batch([question])
        ids = self._session.ask(self._look(image), text, max_new_tokens)
        return Answer(ids, AnswerStream(self._side.prompter), Count(self.ledger), self._reading)

    @torch.no_grad()
    def _look(self, image: Image.Image | str | Path) -> Tensor:
        """The tower's features of an image, (1, M, Dv)."""
        if isinstance(image, str | Path):
            image = open_image(Path(image))
        elif not isinstance(image, Image.Image):
            raise UsageError(f"image: a PIL image or the path of a file, not {type(image).__name__}")
        self._get_ready()
        vision = self.model.vision
        return vision.features(vision.pixels([image]).to(next(vision.parameters()).device))


def _checked(micro: Any) -> Micro:
    match micro:
        case (Tensor(), TextBatch()):
            return micro
    raise UsageError("batch: its micro-batches are pairs of tower features, a tensor, and a TextBatch")
