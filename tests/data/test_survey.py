"""What is known of rows and images before a run: all that is bad at once, refused or left out, and remembered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Tiny, make_recipe
from test_rows import picture
from transformers import AutoTokenizer

from bitseam.config import Recipe
from bitseam.data import inspection
from bitseam.data import survey as surveys
from bitseam.data.kept import keep_rows
from bitseam.data.rows import BadRow, Row
from bitseam.data.survey import survey
from bitseam.errors import DataError
from bitseam.text.prompts import Prompter

pytestmark = pytest.mark.usefixtures("cache")

LONG = "is this a cat ? " * 10  # 50 tokens, of 32


@pytest.fixture
def prompter(tiny: Tiny) -> Prompter:
    return Prompter(make_recipe(tiny).text)


def write(path: Path, *rows: dict[str, Any] | str) -> None:
    whole = {"question": "is this a cat ?", "answer": "yes"}
    path.write_text("".join((row if isinstance(row, str) else json.dumps(whole | row)) + "\n" for row in rows))


@pytest.fixture
def recipe(tiny: Tiny, tmp_path: Path) -> Recipe:
    """Of a training and a test file with one bad row of each kind."""
    for i in range(4):
        picture(tmp_path / f"{i}.png", i)
    cut = picture(tmp_path / "cut.png")
    cut.write_bytes(cut.read_bytes()[:2000])
    good = [{"image": f"{i}.png"} for i in range(4)]
    write(tmp_path / "train.jsonl", *good, {"image": "0.png", "question": LONG}, {"image": "cut.png"}, "{")
    write(tmp_path / "test.jsonl", {"image": "cut.png"}, *good, {"image": "1.png", "question": LONG})
    files = {f"data__{name}": str(tmp_path / f"{name}.jsonl") for name in ("train", "test")}
    return make_recipe(tiny, **files, data__cache_features=False)


def places(bad: list[BadRow]) -> list[tuple[str, int, str]]:
    return [(one.file.name, one.line, one.reason) for one in bad]


def test_D14_all_bad_rows_of_both_files_are_found(recipe: Recipe, prompter: Prompter, tmp_path: Path) -> None:
    found = survey(recipe, prompter)
    cut, long = "cut.png: not a readable image", "over text.max_tokens = 32"
    expected = [("train", 5, long), ("train", 6, cut), ("train", 7, "not JSON"), ("test", 1, cut), ("test", 6, long)]
    assert len(found.bad) == len(expected)
    for (file, line, reason), (name, at, due) in zip(places(found.bad), expected, strict=True):
        assert (file, line) == (f"{name}.jsonl", at)
        assert due in reason
    assert [row.line for row in found.train] == [1, 2, 3, 4]
    assert [row.line for row in found.test] == [2, 3, 4, 5]
    assert set(found.contents) == {tmp_path / f"{i}.png" for i in range(4)}
    with pytest.raises(DataError, match="5 rows cannot be used; mend them, or leave such rows out") as told:
        found.settle("refuse")
    for file, line, _ in expected:
        assert f"{tmp_path}/{file}.jsonl:{line}: " in str(told.value)
    found.settle("skip")
    assert len(survey(recipe, prompter, training=False).bad) == 2


def test_D14_an_answer_counts_where_it_is_trained_on(tiny: Tiny, prompter: Prompter, tmp_path: Path) -> None:
    picture(tmp_path / "0.png")
    write(tmp_path / "rows.jsonl", {"image": "0.png"}, {"image": "0.png", "answer": LONG}, {"image": "0.png"})
    path = str(tmp_path / "rows.jsonl")
    found = survey(make_recipe(tiny, data__train=path, data__test=path), prompter)
    assert [bad.line for bad in found.bad] == [2]
    assert [row.line for row in found.test] == [1, 2, 3]  # it is asked, and not answered for


@pytest.mark.parametrize("max_tokens", [24, 61, 62])
@pytest.mark.parametrize("text", ["a?" * 29, "a " * 17, "a " * 16, "?" * 20, "\u00e9" * 20, "x" * 300, "</s> " * 18])
def test_rows_that_are_not_tokenized_are_not_too_long(tiny: Tiny, tmp_path: Path, max_tokens: int, text: str) -> None:
    picture(tmp_path / "0.png")
    rows = [{"image": "0.png", "question": question, "answer": "a"} for question in (f"{text}0", f"{text}1", "a")]
    write(tmp_path / "rows.jsonl", *rows)
    recipe = make_recipe(tiny, data__train=str(tmp_path / "rows.jsonl"), text__max_tokens=max_tokens, train__batch=1)
    prompter = Prompter(recipe.text)
    found = survey(recipe, prompter)
    for row in found.train:
        prompter.batch([row.question], [row.answer])
    for bad in found.bad:
        with pytest.raises(DataError, match=r"over text\.max_tokens"):
            prompter.batch([rows[bad.line - 1]["question"]], ["a"])


def test_one_bad_row_is_told_in_one_line(tiny: Tiny, prompter: Prompter, tmp_path: Path) -> None:
    picture(tmp_path / "0.png")
    write(tmp_path / "rows.jsonl", {"image": "0.png"}, {"image": "0.png"}, {"image": "0.png", "answer": 3})
    found = survey(make_recipe(tiny, data__train=str(tmp_path / "rows.jsonl")), prompter)
    with pytest.raises(DataError) as told:
        found.settle("refuse")
    assert str(told.value).startswith(f"{tmp_path}/rows.jsonl:3: answer is not text but 3")
    assert str(told.value).endswith("data.bad_rows = 'skip'")
    assert "\n" not in str(told.value)


def test_files_that_are_no_use_are_refused_whatever_the_policy(tiny: Tiny, prompter: Prompter, tmp_path: Path) -> None:
    picture(tmp_path / "0.png")
    write(tmp_path / "rows.jsonl", {"image": "0.png"}, {"image": "1.png"})
    files = {"data__train": str(tmp_path / "rows.jsonl"), "data__test": str(tmp_path / "absent.jsonl")}
    recipe = make_recipe(tiny, **files, data__bad_rows="skip")
    with pytest.raises(
        DataError, match=r"1 usable rows are fewer than one batch of 2[^$]*absent.jsonl: cannot be read"
    ):
        survey(recipe, prompter).settle("skip")


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of images that are opened, and prompts that are tokenized."""
    seen: list[str] = []
    open_crops, refused = inspection.open_crops, surveys._refused

    def opened(path: Path, crops: int) -> Any:
        seen.append(path.name)
        return open_crops(path, crops)

    def tokenized(rows: list[Row], *more: Any) -> str:
        seen.extend(row.question for row in rows)
        return refused(rows, *more)

    monkeypatch.setattr(inspection, "open_crops", opened)
    monkeypatch.setattr(surveys, "_refused", tokenized)
    return seen


def test_what_was_good_is_not_looked_at_again(
    recipe: Recipe, prompter: Prompter, tmp_path: Path, looked: list[str]
) -> None:
    first = survey(recipe, prompter)
    assert sorted(name for name in looked if name.endswith(".png")) == [*(f"{i}.png" for i in range(4)), "cut.png"]
    looked.clear()
    assert survey(recipe, prompter) == first
    assert looked == ["cut.png"]  # a disk or a network may have been at fault
    looked.clear()
    picture(tmp_path / "2.png", 7)
    picture(tmp_path / "cut.png", 8)
    assert len(survey(recipe, prompter).bad) == 3
    assert sorted(name for name in looked if name.endswith(".png")) == ["2.png", "cut.png"]


def test_D8_lengths_are_of_the_prompt_that_they_were_measured_with(
    recipe: Recipe, tiny: Tiny, prompter: Prompter, looked: list[str]
) -> None:
    before = survey(recipe, prompter)
    raw = {"data__train": recipe.data.train, "data__test": recipe.data.test}
    wide = make_recipe(tiny, **raw, text__max_tokens=100)
    after = survey(wide, Prompter(wide.text))
    assert len(after.bad) == len(before.bad) - 2


def test_D8_lengths_are_of_the_chat_template_that_they_were_measured_with(
    tiny: Tiny, recipe: Recipe, tmp_path: Path
) -> None:
    """The tokenizer is the same, only what its template says around a question has grown."""
    tokenizer = AutoTokenizer.from_pretrained(tiny.tokenizer)
    chat = make_recipe(tiny, data__train=recipe.data.train, text__tokenizer=str(tmp_path / "chat"), text__prompt="chat")
    for system, long in ("", 1), ("this is a cat " * 10, 5):
        tokenizer.chat_template = system + "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        tokenizer.save_pretrained(tmp_path / "chat")
        found = survey(chat, Prompter(chat.text))
        assert sum("over text.max_tokens" in bad.reason for bad in found.bad) == long


@pytest.mark.parametrize("spoilt", ["no database", ""])
def test_a_spoilt_memory_ends_no_run(recipe: Recipe, prompter: Prompter, cache: Path, spoilt: str) -> None:
    first = survey(recipe, prompter)
    (cache / "checked.sqlite").write_text(spoilt)
    assert survey(recipe, prompter) == first


def test_many_images_are_looked_at_by_workers(
    tiny: Tiny, prompter: Prompter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "_CHUNK", 2)
    for i in range(5):
        picture(tmp_path / f"{i}.png", i)
    (tmp_path / "3.png").write_bytes(b"no picture")
    write(tmp_path / "rows.jsonl", *({"image": f"{i}.png"} for i in range(5)))
    found = survey(make_recipe(tiny, data__train=str(tmp_path / "rows.jsonl"), data__workers=1), prompter)
    assert [row.line for row in found.train] == [1, 2, 3, 5]
    assert [bad.line for bad in found.bad] == [4]
    assert "3.png: not a readable image" in found.bad[0].reason


def test_a_run_goes_on_with_the_rows_that_it_began_with(tmp_path: Path) -> None:
    rows = [Row(tmp_path / f"{i}.png", "a", "b", line=i + 1) for i in range(4)]
    contents = {row.image: bytes([i]) for i, row in enumerate(rows)}
    bad = [BadRow(tmp_path / "rows.jsonl", line, f"is bad {line}") for line in (7, 8)]
    keep_rows(tmp_path / "client", rows, contents, bad, begun=False)
    keep_rows(tmp_path / "client", rows, contents, bad, begun=True)
    with pytest.raises(DataError, match=r"began with 4 training rows, and the 3 of now have other") as told:
        cut = BadRow(tmp_path / "rows.jsonl", 4, "is cut")
        keep_rows(tmp_path / "client", rows[:3], contents, [cut, bad[0]], begun=True)
    assert "left out since then:\n" + f"{tmp_path}/rows.jsonl:4: is cut" in str(told.value)
    assert "left out then, and usable now:\n" + f"{tmp_path}/rows.jsonl:8: is bad 8" in str(told.value)
    assert str(told.value).endswith("another folder in `out`")
    keep_rows(tmp_path / "client", rows, contents, bad, begun=True)  # what is refused changes nothing
    lines = [json.loads(line) for line in (tmp_path / "client" / "bad_rows.jsonl").read_text().splitlines()]
    assert lines[0] == {"file": str(tmp_path / "rows.jsonl"), "line": 7, "reason": "is bad 7"}
    keep_rows(tmp_path / "client", rows[:3], contents, [], begun=False)
    assert not (tmp_path / "client" / "bad_rows.jsonl").exists()


def test_a_run_goes_on_where_its_data_were_moved_and_not_where_a_picture_is_another(
    recipe: Recipe, tiny: Tiny, prompter: Prompter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def go_on(train: str) -> None:
        found = survey(make_recipe(tiny, data__train=train), prompter)
        keep_rows(tmp_path / "client", found.train, found.contents, found.bad, begun=True)

    go_on(recipe.data.train)
    monkeypatch.chdir(tmp_path)
    go_on("train.jsonl")
    (tmp_path / "data").mkdir()
    for path in [*tmp_path.glob("*.png"), *tmp_path.glob("*.jsonl")]:
        path.rename(tmp_path / "data" / path.name)
    go_on("data/train.jsonl")
    picture(tmp_path / "data" / "1.png", 9)
    with pytest.raises(DataError, match=r"4 of now have other pictures or texts, or another order\nGo on with"):
        go_on("data/train.jsonl")
