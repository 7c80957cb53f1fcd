"""The command line in the test's own process: to load torch anew takes seconds."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from bitseam.cli.main import main

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def bitseam(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> Command:
    """A command's words -> its exit status, and both outputs with what was logged, in a line."""
    monkeypatch.setenv("BITSEAM_CACHE", str(tmp_path / "cache"))

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["bitseam", *words])
        caplog.clear()
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        assert steady(captured.out + captured.err)
        return int(ended.value.code or 0), flat("\n".join([captured.out, captured.err, *caplog.messages]))

    return run


def steady(output: str) -> bool:
    """Whether a terminal would only show it; transformers' own progress goes back to the line's start."""
    said = re.sub(r"\r(Loading weights|Writing model shards)", "", output)
    return not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", said)


def flat(output: str) -> str:
    """In one line, so that a wrapped console hides nothing."""
    return " ".join(output.split())
