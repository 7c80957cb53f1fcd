"""A codec of another package, as docs/codecs.md shows it: named, trained with, checked; and what is wrong with one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Tiny, make_recipe
from torch import Tensor
from training import train_and_compare

from bitseam.codecs import Codec, codec_from_config, codecs, plugins
from bitseam.errors import CodecError, ConfigError
from bitseam.streams import Sender

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "codecs.md").read_text()
EXAMPLE = re.findall(r"```python\n(# my_codecs\.py.*?)```", PAGE, re.DOTALL)[0]
CHECKS = re.findall(r"```python\n(# test_my_codecs\.py.*?)```", PAGE, re.DOTALL)[0]
POINT = re.findall(r'^my-int8 = "(.*)"$', PAGE, re.MULTILINE)[0]

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put a package where Python finds it: module's source, the lines of its entry points, its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def put(source: str = EXAMPLE, points: str = f"my-int8 = {POINT}", package: str = "my-codecs") -> None:
        (tmp_path / f"{package.replace('-', '_')}.py").write_text(source)
        about = tmp_path / f"{package.replace('-', '_')}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[bitseam.codecs]\n{points}")
        forget()

    yield put
    forget()
    sys.modules.pop("my_codecs", None)


def forget() -> None:
    plugins.named.cache_clear()
    plugins.load.cache_clear()


def test_a_package_is_imported_when_its_codec_is_asked_for(install: Install) -> None:
    install()
    assert codec_from_config({"id": "fp16"}).codec_id == "fp16"
    with pytest.raises(CodecError, match=r"unknown codec 'zip'; known: .*splitfc, delta, my-int8$"):
        codec_from_config({"id": "zip"})
    assert "my_codecs" not in sys.modules
    codec = codec_from_config({"id": "my-int8", "step": 0.5})
    assert codec.config() == {"id": "my-int8", "step": 0.5}
    assert type(codec) is codecs()["my-int8"]
    assert torch.equal(codec.decode(codec.encode(torch.tensor([1.1, -9.0])), (2,)), torch.tensor([1.0, -9.0]))
    with pytest.raises(CodecError, match="codec my-int8 has no option 'stap'; known: step"):
        codec_from_config({"id": "my-int8", "stap": 0.5})


def test_it_is_trained_with_in_both_directions(install: Install, tiny: Tiny) -> None:
    install()
    codec = {"id": "my-int8", "step": 0.01}
    train_and_compare(make_recipe(tiny, streams__image={"quantizer": "none", "codec": codec, "gradient": codec}))


def checked(folder: Path) -> tuple[int, set[str], str]:
    """Exit status of the checks of docs/codecs.md, what failed, and all that was said."""
    (folder / "test_my_codecs.py").write_text(CHECKS)
    (folder / "pytest.ini").write_text("[pytest]\n")
    paths = os.pathsep.join([str(folder), str(ROOT / "src")])
    command = [sys.executable, "-m", "pytest", "-q", "-rf", "-p", "no:cacheprovider", "test_my_codecs.py"]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    return done.returncode, set(re.findall(r"^FAILED .*::test_(\w+)", done.stdout, re.MULTILINE)), done.stdout


def test_the_checklist_passes_the_example(install: Install, tmp_path: Path) -> None:
    install()
    status, failed, said = checked(tmp_path)
    assert status == 0, said
    assert not failed
    assert int(re.findall(r"(\d+) passed", said)[0]) > 30


def test_the_checklist_fails_a_bad_one(install: Install, tmp_path: Path) -> None:
    bad = EXAMPLE.replace("    def _encode", "    unbiased = True\n\n    def _encode", 1)
    bad = bad.replace("(x / self.step)", "x.div_(self.step).add_(torch.rand(x.shape))")
    bad = bad.replace("np.frombuffer(payload, np.int8)", "np.frombuffer(payload or b'x', np.int8)")
    install(bad)
    _, failed, said = checked(tmp_path)
    assert failed >= {
        "round_trip_within_the_promised_error",
        "any_shape_within_the_stated_length",
        "what_is_coded_stays_as_it_was",
        "chance_is_the_generators_alone",
        "unbiased_as_it_says",
        "deterministic_an_item_is_coded_alike_alone_and_in_a_batch",
        "deterministic_draws_nothing",
    }, said
    assert not failed & {"integers_are_refused", "not_finite_is_refused_with_count_and_place"}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"points": "my-int8 = my_codecs_lost:Int8"}, "cannot be imported: ModuleNotFoundError"),
        ({"source": "raise RuntimeError('no\\nway')"}, r"my_codecs:Int8 of my-codecs.*RuntimeError: no way"),
        ({"points": "my-int8 = my_codecs:Int9"}, "cannot be imported: AttributeError"),
        ({"points": "my-int8 = my_codecs:np"}, "is no dataclass derived from bitseam.codecs.Codec"),
        ({"source": EXAMPLE.replace("@dataclass(frozen=True)", "")}, "is no dataclass"),
        ({"source": EXAMPLE.replace("(Codec)", "")}, "derived from bitseam.codecs.Codec"),
        ({"source": EXAMPLE.replace('"my-int8"', '"our-int8"')}, "calls itself 'our-int8'"),
        ({"source": EXAMPLE.replace("def _decode", "def decode_")}, "lacks _decode"),
    ],
)
def test_what_is_no_codec_is_named_when_asked_for(install: Install, changes: dict[str, str], named: str) -> None:
    install(**changes)
    assert codec_from_config({"id": "nf", "bits": 4}).codec_id == "nf"
    for ask in (lambda: codec_from_config({"id": "my-int8"}), codecs):
        with pytest.raises(CodecError, match=named) as told:
            ask()
        assert "codec my-int8 (entry point bitseam.codecs" in str(told.value)
        assert "\n" not in str(told.value)


def test_a_name_is_taken_once(install: Install) -> None:
    install(EXAMPLE.replace('"my-int8"', '"nf"'), f"nf = {POINT}")
    assert codec_from_config({"id": "fp16"}).codec_id == "fp16"
    with pytest.raises(CodecError, match=r"my-codecs.*Bitseam has a codec of that name"):
        codec_from_config({"id": "nf", "bits": 4})
    install(points="my-int8 = other_codecs:Int8", package="other-codecs")
    install(points="my-int8 = third_codecs:Int8", package="third-codecs")
    with pytest.raises(CodecError, match=r"(other|third)-codecs.*several packages name it"):
        codec_from_config({"id": "my-int8"})


def test_what_its_constructor_raises_is_named(install: Install, tiny: Tiny) -> None:
    install(
        EXAMPLE.replace(
            "    def _payload", "    def __post_init__(self):\n        1 / self.step\n\n    def _payload", 1
        )
    )
    recipe = make_recipe(tiny, streams__image={"quantizer": "none", "codec": {"id": "my-int8", "step": 0}})
    with pytest.raises(ConfigError, match=r"streams\.image\.codec: codec my-int8: ZeroDivisionError"):
        Sender("image", 0, recipe.streams["image"], 32)


@dataclass(frozen=True)
class Liar(Codec):
    """Gives what it is told to."""

    codec_id = "liar"
    made: Any = b"abcd"
    decoded: Any = None

    def _payload_bytes(self, shape: tuple[int, ...]) -> int:
        return 4

    def _encode(self, x: Tensor, generator: torch.Generator | None) -> bytes:
        return self.made

    def _decode(self, payload: bytes, shape: tuple[int, ...]) -> Tensor:
        return self.decoded


@pytest.mark.parametrize(
    ("made", "named"),
    [
        (b"abc", "made 3 bytes of shape"),
        (b"abcde", "made 5 bytes"),
        ("abcd", "made str, not bytes"),
        (None, "None"),
    ],
)
def test_a_payload_of_another_length_than_promised_is_named(made: Any, named: str) -> None:
    with pytest.raises(CodecError, match=f"codec liar .*{named}"):
        Liar(made).encode(torch.zeros(2))


@pytest.mark.parametrize(
    ("decoded", "named"),
    [
        (torch.zeros(3), r"decoded to torch.float32 of shape \(3,\) where float32 of shape \(2,\) is due"),
        (torch.zeros(2).double(), "decoded to torch.float64"),
        ([0.0, 0.0], "decoded to list"),
        (torch.tensor([0.0, torch.nan]), r"payload of codec liar: 1 of 2 values .* \(1,\)"),
    ],
)
def test_what_is_not_the_tensor_due_is_named(decoded: Any, named: str) -> None:
    with pytest.raises(CodecError, match=named) as told:
        Liar(decoded=decoded).decode(b"abcd", (2,))
    assert "codec liar" in str(told.value)
