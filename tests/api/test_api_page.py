"""docs/api.md: its examples run, in order, and its tables name all that there is."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import Tiny
from tiny_run import write_tiny_run

from bitseam import Client, Server
from bitseam.api.answer import Answer, Crossed
from bitseam.evals import Evaluation
from bitseam.train import StepRecord

PAGE = (Path(__file__).parent.parent.parent / "docs" / "api.md").read_text()


@pytest.mark.usefixtures("cache")
def test_its_examples_run(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_run(tmp_path, tiny).rename("run.toml")
    (tmp_path / "0.png").rename("photo.png")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(rows.read_text().replace("0.png", "photo.png"))
    examples = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, object] = {"__name__": "__main__"}
    try:
        for example in examples:
            exec(compile(example, "docs/api.md", "exec"), names)
    finally:
        for name in ("client", "server"):  # where an example has failed
            getattr(names.get(name), "close" if name == "client" else "stop", lambda: None)()
    told = capsys.readouterr().out
    for expected in (
        r"^localhost:\d+$",
        r"^step 4: loss \d\.\d+, [\d,]+ bytes up, [\d,]+ down$",
        r"\| [\d,]+ bytes \([\d,]+ at fp16\) up, \d+ bytes \(\d+ at fp16\) down$",
        r"\(32 bytes of codes\)$",
        r"^cats: \d of 8, \d+%$",
        r"^[2-9]\.\d times fewer bytes up than at fp16$",
        r"^run\.toml: .*zip",
        r"^ask\(\): this client is closed$",
    ):
        assert re.search(expected, told, re.MULTILINE), (expected, told)


@pytest.mark.parametrize("kind", [Client, Server, Answer])
def test_it_names_every_public_name(kind: type) -> None:
    public = {name for name in vars(kind) if not name.startswith("_")}
    assert len(public) > 4
    assert {name for name in public if not re.search(rf"[`.]{name}\b", PAGE)} == set()


@pytest.mark.parametrize("kind", [StepRecord, Crossed, Evaluation])
def test_it_names_every_field(kind: type) -> None:
    assert {field.name for field in fields(kind) if not re.search(rf"[`.]{field.name}\b", PAGE)} == set()
