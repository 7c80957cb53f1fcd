"""benchmarks/codecs.py on a tiny model: every codec and quantizer is in it, and its figures are what they say."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
import torch
from conftest import WIDTH, Tiny, load_benchmark, make_recipe
from PIL import Image

from bitseam.codecs import BUILT_IN
from bitseam.config import QuantizerName
from bitseam.data.rows import Row, write_rows
from bitseam.errors import ModelError
from bitseam.evals import planning
from bitseam.evals.planning import FrozenPair, UpPlanner
from bitseam.runs.checkpoint import Identity, build_client, build_server, save_client, save_server
from bitseam.text.prompts import Prompter

QUESTIONS = [("is this a cat ?", "yes", 0), ("a dog ?", "no", 0), ("what is there ?", "a red cat", 1)]


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return load_benchmark("codecs")


@pytest.fixture(scope="module")
def sample(bench: ModuleType, tiny: Tiny) -> Any:
    """Two messages of two images."""
    recipe = make_recipe(tiny, streams__image={"quantizer": "none", "codec": "fp16"})
    questions, answers, images = zip(*QUESTIONS, strict=True)
    text = Prompter(recipe.text).batch(questions, answers, images)
    torch.manual_seed(0)
    language = build_server(recipe, str).eval().requires_grad_(False)
    scale = torch.logspace(-1, 1, WIDTH)
    known, *features = (torch.randn(count, 4, WIDTH) * scale + scale for count in (16, 2, 2))
    pair = FrozenPair(build_client(recipe, str), language)
    loss, gradient = pair.gradients(text, {"image": known})
    planner = UpPlanner(pair, [planning.Sample(text, {"image": known}, gradient, loss)], 2)
    return bench.Sample(known, planner, features, [text, text], language)


@pytest.fixture(scope="module")
def rows(bench: ModuleType, sample: Any) -> dict[tuple[str, str], dict[str, Any]]:
    bench.ROUNDS, bench.CLIPS, bench.PLANS = 1, [1.0, 1.5], [3]
    up = bench.compare(bench.ups(sample), "up", sample.features, 300, sample)
    ways = [bench.Way(name, codec) for name, codec in bench.GRADIENTS.items()]
    down = bench.compare(ways, "down", sample.gradients(), 300)
    return {(row["direction"], row["codec"]): row for row in up + down}


def test_every_codec_and_quantizer_is_compared(rows: dict[tuple[str, str], dict[str, Any]]) -> None:
    ids = {
        way: {json.loads(r["settings"])["id"] for r in rows.values() if r["direction"] == way} for way in ("up", "down")
    }
    quantizers = {row["stream"]["quantizer"] for row in rows.values() if row["stream"]}
    assert ids["up"] | ids["down"] == set(BUILT_IN) - {"delta"}  # which benchmarks/delta.py has
    assert quantizers >= set(get_args(QuantizerName)) - {"none"}
    assert ids["down"] >= {"stochastic", "entropy-stochastic", "fp16"}


def test_rows_are_whole_and_named_once(bench: ModuleType, rows: dict[tuple[str, str], dict[str, Any]]) -> None:
    assert len(rows) == len(bench.QUANTIZERS) + len(bench.PLANS) + len(bench.FEATURES) + len(bench.GRADIENTS)
    for (direction, name), row in rows.items():
        assert row["elements"] == 2 * 2 * 4 * WIDTH
        assert row["bits_per_element"] > 0, name
        assert min(row[f"{part}_s"] for part in ("encode", "decode", "copy")) > 0
        assert (row["loss_increase"] is None) == (row["over_default"] is None) == (direction == "down")
        assert row["cosine"] <= 1 + 1e-9


@pytest.mark.parametrize("direction", ["up", "down"])
def test_floats_lose_nothing(rows: dict[tuple[str, str], dict[str, Any]], direction: str) -> None:
    row = rows[direction, "fp32"]
    assert row["bits_per_element"] == 32
    assert row["mse"] < 1e-12
    assert row["cosine"] == pytest.approx(1)
    assert abs(row["loss_increase"] or 0) < 1e-6


def test_indices_are_counted(rows: dict[tuple[str, str], dict[str, Any]]) -> None:
    for (_, name), row in rows.items():
        settings = json.loads(row["settings"])
        if settings["id"] in ("uniform", "stochastic", "one-bit", "nf", "blockwise-int"):
            assert 0 < row["entropy_bits"] <= row["bits_per_element"] + 1e-9, name
    assert 3 < rows["up", "nf4"]["entropy_bits"] < 4
    assert 5 < rows["up", "int8"]["entropy_bits"] < 8
    assert 2 < rows["down", "entropy-stochastic 0.5"]["entropy_bits"] < 3.5
    assert rows["down", "fp16"]["entropy_bits"] is None
    assert rows["up", "splitfc 2"]["entropy_bits"] is None


def test_error_is_in_deviations_of_a_channel(rows: dict[tuple[str, str], dict[str, Any]]) -> None:
    """Channels differ a hundredfold in scale: the tensor-wide statistics of the paper ruin the small ones."""
    assert rows["up", "rd-fsq 8 to 1.5"]["mse"] < 0.2
    assert rows["up", "rd-fsq-tensor 8"]["mse"] > 1


def test_picture_and_tables_show_all_rows(
    bench: ModuleType, sample: Any, rows: dict[tuple[str, str], dict[str, Any]], tmp_path: Path
) -> None:
    lines = bench.bounds(torch.cat(sample.features))
    figures = {"rows": list(rows.values()), "lines": {"up": lines, "down": lines}}
    bench.draw(figures, tmp_path / "codecs.png")
    assert Image.open(tmp_path / "codecs.png").width > 1000
    assert bench.markdown(figures).count("\n| ") == len(rows) + 3


def test_losses_are_over_exact_features_and_over_the_default(rows: dict[tuple[str, str], dict[str, Any]]) -> None:
    """At 32 bits, features are exact; the default against itself is nothing, with no error."""
    default, exact = rows["up", "rd-fsq 4 to 1.5"], rows["up", "fp32"]
    assert default["over_default"] == default["over_default_error"] == 0
    assert default["loss_increase_error"] > 0
    assert exact["over_default"] == pytest.approx(-default["loss_increase"], abs=1e-6)


def test_times_can_be_left_out(bench: ModuleType, sample: Any, rows: dict[tuple[str, str], dict[str, Any]]) -> None:
    ways = [bench.Way(name, bench.GRADIENTS[name]) for name in ("fp16", "stochastic 4")]
    untimed = bench.compare(ways, "down", sample.gradients(), 0)
    assert all(row[name] is None for row in untimed for name in ("encode_s", "decode_s", "copy_s"))
    tables = bench.markdown({"rows": [rows["up", "nf4"], *untimed]})
    assert "| over default | encode | decode |\n" in tables
    assert "| down | bits | entropy | relative MSE | cosine |\n" in tables


def test_gradients_are_those_of_the_loss(sample: Any) -> None:
    gradient = sample.gradients()[0]
    step = 1e-2 * gradient / gradient.norm()
    moved = [sample.features[0] + step, sample.features[1]], [sample.features[0] - step, sample.features[1]]
    answer_tokens = sum(int(text.answers.sum()) for text in sample.texts)
    up, down = (float(sample.loss(features).mean()) * answer_tokens for features in moved)
    assert (up - down) / 2e-2 == pytest.approx(float(gradient.norm()), rel=2e-2)


def test_lines_of_gaussian_values(bench: ModuleType) -> None:
    x = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0))
    for line in bench.bounds(x).values():
        for bits, error in line[::8]:
            assert error == pytest.approx(4**-bits, rel=0.08)  # R(D) = log2(1 / D) / 2
    together = bench.bounds(x[:, :1].expand(-1, 3) + 1e-4 * x)["Gaussian R(D), channels together"]
    bits, error = together[8]
    assert error == pytest.approx(4 ** (-3 * bits), rel=0.02)  # three equal channels take the bits of one


def test_checkpoints_are_read(bench: ModuleType, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    for number in range(6):
        Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(tmp_path / f"{number}.png")
        rows += [Row(tmp_path / f"{number}.png", question, "yes") for question in ("a cat ?", "a dog ?")]
    write_rows(tmp_path / "rows.jsonl", rows)
    frozen = sys.modules["frozen"]
    for quantizer, codec in (("none", "fp16"), ("rd-fsq", "uniform")):
        stream = {"quantizer": quantizer, "codec": codec}
        recipe = make_recipe(tiny, streams__image=stream, data__test=str(tmp_path / "rows.jsonl"))
        torch.manual_seed(0)
        folders = [
            save(build(recipe, str), recipe, Identity("run", 1), tmp_path / quantizer)
            for save, build in ((save_client, build_client), (save_server, build_server))
        ]
        monkeypatch.setattr(frozen, "CALIBRATION", 2)
        monkeypatch.setattr(frozen, "QUESTIONS", 5)
        monkeypatch.setattr(frozen, "MESSAGE", 2)
        if quantizer == "rd-fsq":
            with pytest.raises(ModelError, match="without a quantizer"):
                bench.load(*folders, None)
            continue
        sample, about = bench.load(*folders, None)
        assert (about["images"], about["questions"]) == (3, 6)
        assert [len(x) for x in sample.features] == [2, 1]
        assert len(sample.loss(sample.features)) == 3


@pytest.fixture
def packing(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load_benchmark("packing")
    monkeypatch.setattr(module, "SHAPE", (2, 3, 40))
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_packing_on_a_gpu_says_that_there_is_none(
    packing: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["packing.py", "--device", "cuda"])
    with pytest.raises(SystemExit):
        packing.main()
    assert "no GPU" in capsys.readouterr().err


def test_packing_refuses_to_time_other_bytes_and_levels(packing: ModuleType) -> None:
    x = torch.randn(packing.SHAPE)
    payload = packing.CODECS[3].encode(x)
    packing.check(3, x, payload)
    with pytest.raises(SystemExit, match="bytes are not"):
        packing.check(3, x, bytes(len(payload)))


def test_packing_times_each_count_of_levels_both_ways(packing: ModuleType) -> None:
    figures = packing.measure(torch.device("cpu"))
    assert len(figures) == 1 + 2 * len(packing.CODECS)
    assert figures["copy"]["copies"] == 1
    assert figures["encode, 4 levels"]["bits"] == 2


def test_a_change_crosses_in_as_many_bytes_with_less_error() -> None:
    delta = load_benchmark("delta")
    first = [torch.randn(2, 4, WIDTH, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    second = [x + 0.1 * x.roll(1, 0) for x in first]
    codec, room = delta.BlockwiseInt(4, 64), sum(x.nbytes for x in first)
    lengths, errors = [], []
    for ends in ((codec, codec, 0), (delta.Fp16(), codec, room)):
        payloads, received = delta.second_visit(delta.Changes(*ends), delta.Changes(*ends), first, second)
        lengths.append([len(payload) for payload in payloads])
        errors.append(float((torch.cat(received) - torch.cat(second)).square().mean()))
    assert lengths[0] == lengths[1]
    assert errors[1] == pytest.approx(errors[0] / 100, rel=0.3)  # a tenth as large
