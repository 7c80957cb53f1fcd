"""The report of `make faults`: its fields are those of its parts, and a part that is missing is named."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
from conftest import load_benchmark
from survival import Survival


@pytest.fixture(scope="module")
def faults() -> ModuleType:
    return load_benchmark("faults")


def test_fields_are_those_of_the_parts(faults: ModuleType, tmp_path: Path) -> None:
    for part in ("kills", "proxy", "fuzz", "hostile", "clients", "overhead"):
        with pytest.raises(SystemExit, match=rf"{part}.json: no \w+ \(FileNotFoundError\); `.* writes it"):
            faults.put_together(tmp_path)
        fields = {field: hash(field) for field, of in faults.FIELDS.items() if of == part}
        fields |= {"inputs": fields.pop("fuzz_inputs")} if part == "fuzz" else {}
        (tmp_path / f"{part}.json").write_text(json.dumps(fields))
    assert faults.put_together(tmp_path) == {field: hash(field) for field in faults.FIELDS}
    (tmp_path / "clients.json").write_text('{"clients": 16}')
    with pytest.raises(SystemExit, match=r"clients.json: no bytes_per_idle_client"):
        faults.put_together(tmp_path)


def test_the_tests_that_it_runs_are_there(faults: ModuleType) -> None:
    assert list(faults.HOSTILE.glob("test_*.py"))
    assert "bytes_per_idle_client" in faults.MANY_CLIENTS.read_text()


def test_what_a_failed_run_went_through_is_not_survived(faults: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [Survival(["one", "two"]), Survival(["three"], failure="not bit-identical: x.safetensors")]
    figures = faults.survive("kills", "bit_identical", lambda new: runs)
    assert (figures["kills"], figures["bit_identical"]) == (3, 2)
    assert "x.safetensors\nthree" in capsys.readouterr().out


def test_cases_are_counted_as_pytest_saw_them(
    faults: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = ["", "", "<failure/>", "<error/>", "<skipped/>"]
    told = "".join(f'<testcase name="case {number}">{inner}</testcase>' for number, inner in enumerate(cases))
    tests = ElementTree.fromstring(f"<testsuites><testsuite>{told}</testsuite></testsuites>")
    monkeypatch.setattr(faults, "run_tests", lambda folder, results: tests)
    options = type("Options", (), {"out": tmp_path})
    assert faults.hostile(options) == {"hostile_cases": 4, "contained": 2, "failed": ["case 2", "case 3"]}
