"""Documentation that can be executed is executed; what it names exists."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
from conftest import load_benchmark
from typer.testing import CliRunner

from bitseam import errors
from bitseam.cli.main import app
from bitseam.codecs import BUILT_IN
from bitseam.config import QuantizerName, Stream, load_recipe, shipped_recipes
from bitseam.config.recipe import STREAMS
from bitseam.evals.report import summary_markdown
from bitseam.streams import Sender, build_streams

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def snippets(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def shown_output(page: str) -> list[str]:
    return re.findall(r"```\n\n```\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def test_readme_snippet_for_a_model_of_ones_own_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    (snippet,) = snippets("README.md")
    assert len(snippet.splitlines()) <= 20
    names: dict[str, Any] = {}
    exec(compile(snippet, "README.md", "exec"), names)
    printed = capsys.readouterr().out.strip()
    assert f"This prints `{printed}`" in (ROOT / "README.md").read_text()
    sent = names["sent"]
    assert f"{sent.total / 1e6:.2f} MB instead of {sent.fp16 / 1e6:.1f} MB at fp16" in printed
    assert abs(sent.total / 1e4 - round(sent.total / 1e4)) < 0.45  # so that another machine rounds alike
    assert 2 * 100 * 64 * 16 * 16 * 2 / 8 < sent.total < sent.fp16 == 2 * 100 * 64 * 16 * 64 * 2


def test_the_streams_page_compares_codecs_by_a_loop(capsys: pytest.CaptureFixture[str]) -> None:
    loop, _ = snippets("docs/stream.md")
    exec(compile(loop, "stream.md", "exec"), {})
    assert capsys.readouterr().out == shown_output("docs/stream.md")[0]


def test_the_streams_page_trains_in_two_processes(tmp_path: Path) -> None:
    _, program = snippets("docs/stream.md")
    (tmp_path / "two.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "two.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == shown_output("docs/stream.md")[1], done.stderr


def test_the_streams_page_names_every_keyword_and_error() -> None:
    page = (ROOT / "docs" / "stream.md").read_text()
    keywords = page.split("## Keywords")[1].split("\n\n")[2]
    assert re.findall(r"`(\w+)`", keywords) == [field.name for field in fields(Stream)]
    for name in re.findall(r"`(\w+Error)`", page):
        assert issubclass(getattr(errors, name), errors.BitseamError), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist_with_the_options_named(page: Path) -> None:
    runner = CliRunner()
    for command, rest in re.findall(r"^bitseam (\w+)(.*)$", page.read_text(), re.MULTILINE):
        shown = runner.invoke(app, [command, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
        assert shown.exit_code == 0, command
        for option in re.findall(r"--[a-z-]+", rest):
            assert option in shown.output, f"{command} {option}"


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES:
        for target in re.findall(r"^make ([\w-]+)", page.read_text(), re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_keys_in_the_guide_are_keys_of_recipes() -> None:
    recipe = load_recipe(ROOT / "recipes" / "demo.toml")
    for key in re.findall(
        r"`((?:client|server|seam|text|train|data|network)\.[a-z_.]+)`", (ROOT / "docs" / "guide.md").read_text()
    ):
        value: object = recipe
        for name in key.split("."):
            assert hasattr(value, name), key
            value = getattr(value, name)


def test_recipes_in_the_guide_are_those_that_come_with_bitseam() -> None:
    section = (ROOT / "docs" / "guide.md").read_text().split("### Recipes by name")[1].split("###")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == sorted(shipped_recipes())


def test_the_guides_fewest_bytes_are_those_that_were_measured(tmp_path: Path) -> None:
    """Laid over the demo's recipe, the page's lines give the streams of that point of the benchmark."""
    page = (ROOT / "docs" / "guide.md").read_text()
    (tmp_path / "guide.toml").write_text(
        re.findall(r"bytes.*?```toml\n(.*?)```", page.split("## Fewest")[1], re.DOTALL)[0]
    )
    point = load_benchmark("traffic").POINTS["learned rate, coarse gradients"]
    demo = ROOT / "recipes" / "demo.toml"
    assert load_recipe(demo, plan=tmp_path / "guide.toml").streams == load_recipe(demo, point).streams


def test_recipes_tables_in_the_guide_load(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "guide.md").read_text()
    shown = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    assert len(shown) == 2
    for number, lines in enumerate(shown):
        (tmp_path / f"{number}.toml").write_text(lines)
        recipe = load_recipe(ROOT / "recipes" / "demo.toml", plan=tmp_path / f"{number}.toml")
        build_streams(Sender, recipe.streams, recipe.seam.width)


def test_keys_of_streams_in_the_guide_are_all_that_there_are() -> None:
    section = (ROOT / "docs" / "guide.md").read_text().split("## Streams")[1].split("## ")[0]
    rows = re.findall(r"^\| (`[^|]*) \|", section.split("| key | means |")[1], re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == {field.name for field in fields(Stream)}
    named = set(re.findall(r"^\| `(\w+)` \|", section.split("| key | means |")[0], re.MULTILINE))
    assert named == set(STREAMS)


def test_readme_table_is_that_of_the_kept_report() -> None:
    report = json.loads((ROOT / "docs" / "results" / "demo.json").read_text())
    assert summary_markdown(report).strip() in (ROOT / "README.md").read_text()


def test_codecs_table_is_that_of_the_kept_figures() -> None:
    figures = json.loads((ROOT / "docs" / "results" / "codecs.json").read_text())
    assert load_benchmark("rate_distortion").markdown(figures) in (ROOT / "docs" / "codecs.md").read_text()


def test_codecs_page_tells_of_each() -> None:
    page = (ROOT / "docs" / "codecs.md").read_text()
    told = set(re.findall(r"`([\w-]+)`", " ".join(re.findall(r"^\*\*(.+?)\*\*", page, re.MULTILINE))))
    assert told == {*BUILT_IN, *get_args(QuantizerName)}


def test_results_have_a_row_each() -> None:
    page = (ROOT / "docs" / "results" / "README.md").read_text()
    kept = {path.name for path in (ROOT / "docs" / "results").iterdir()} - {"README.md"}
    assert set(re.findall(r"^\| `([\w.]+)` \|", page, re.MULTILINE)) == kept
