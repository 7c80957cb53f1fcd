"""Checkpoints of the halves, and the model they merge into."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import Tiny, make_recipe
from PIL import Image
from safetensors.torch import load_file, save_file

from bitseam.errors import ConfigError, ModelError
from bitseam.runs.checkpoint import (
    Identity,
    build_client,
    build_server,
    folder_of,
    held,
    load_client,
    load_server,
    newest,
    save_client,
    save_server,
)
from bitseam.runs.merge import BitseamModel, merge
from bitseam.text.prompts import Prompter

KINDS = [
    {},
    {"client__tune_vision": True},
    {"server__tune": "lora"},
    {"server__tune": "frozen"},
    {"streams__text__clip": 3.0},
    {"streams__image__codec__id": "entropy-uniform", "streams__image__codec__contexts": 3},
    {"streams__image": {"quantizer": "none", "codec": {"id": "nf", "bits": 4}, "channels": 20}},
    {"llava": True},
]


def saved(tiny: Tiny, out: Path, kind: dict) -> tuple[Path, Path]:
    """Two halves with weights unlike any fresh ones, written."""
    kind = dict(kind)
    if kind.pop("llava", False):
        kind |= {"client__checkpoint": tiny.llava, "server__checkpoint": tiny.llava}
    recipe = make_recipe(tiny, **kind)
    client, server = build_client(recipe, str), build_server(recipe, str)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in [*client.parameters(), *server.parameters()]:
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    for sender in client.senders().values():
        sender.calibrate(torch.randn(9, 32, generator=generator))
    return save_client(client, recipe, Identity("ab", 3), out), save_server(server, recipe, Identity("ab", 3), out)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_is_written_is_read_and_merges(tiny: Tiny, tmp_path: Path, kind: dict) -> None:
    client_folder, server_folder = saved(tiny, tmp_path, kind)
    client, recipe, identity = load_client(client_folder, str)
    server, _, other = load_server(server_folder, str)
    assert identity == other == Identity("ab", 3)
    again = save_client(client, recipe, identity, tmp_path / "again")
    for name, tensor in load_file(client_folder / "model.safetensors").items():
        assert torch.equal(load_file(again / "model.safetensors")[name], tensor), name

    client.eval(), server.eval()
    image = Image.effect_noise((60, 60), 80).convert("RGB")
    text = Prompter(recipe.text).batch(["is this a cat ?"], ["yes"])
    with torch.no_grad():
        features = client.vision.features(client.vision.pixels([image]))
        levels = {name: quantized.levels for name, quantized in client(features, text).items()}
        split, _ = server.answer_logits(text, levels)
        merge(client_folder, server_folder, tmp_path / "merged", str)
        whole = BitseamModel.from_pretrained(tmp_path / "merged").eval()
        unsplit = whole(whole.client.vision.pixels([image]), text).logits
    torch.testing.assert_close(unsplit, split, rtol=1e-4, atol=1e-5)
    assert isinstance(whole.answer(image, "is this a cat ?", 4), str)


def test_one_model_serves_several_rates(tiny: Tiny, tmp_path: Path) -> None:
    folders = saved(tiny, tmp_path, {})
    features = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(5))
    error = []
    for levels in (2, 4, 32):
        streams = make_recipe(tiny, streams__image__levels=levels, streams__image__clip=levels / 8 + 1).streams
        client, server = (
            load(folder, str, streams)[0] for load, folder in zip((load_client, load_server), folders, strict=True)
        )
        sender, receiver = client.eval().senders()["image"], server.receivers()["image"]
        crossed = sender(features).levels
        assert 2 <= len(crossed.unique()) <= levels
        exact = sender.quantizer.normalise(sender.quantizer.project(features))
        error.append(float((receiver(crossed) - receiver(exact)).detach().square().mean()))
    assert error[0] > 2 * error[1] > 8 * error[2]


def test_weights_that_do_not_fit_a_seam_are_named(tiny: Tiny, tmp_path: Path) -> None:
    folder, _ = saved(tiny, tmp_path, {})
    with pytest.raises(ModelError, match=rf"{folder}(.|\n)*size mismatch"):
        load_client(folder, str, make_recipe(tiny, streams__image__channels=20).streams)


def test_halves_of_different_runs_do_not_merge(tiny: Tiny, tmp_path: Path) -> None:
    client, server = saved(tiny, tmp_path, {})
    model, recipe, _ = load_server(server, str)
    other = save_server(model, recipe, Identity("ab", 4), tmp_path)
    with pytest.raises(ModelError, match=r"ab@3.*ab@4.*not two halves of one model"):
        merge(client, other, tmp_path / "merged", str)


def test_only_the_newest_two_stay(tiny: Tiny, tmp_path: Path) -> None:
    recipe = make_recipe(tiny)
    model = build_client(recipe, str)
    model.streams["image"].quantizer.calibrate(torch.randn(9, 32))
    for step in (1, 2, 3, 2000000):
        save_client(model, recipe, Identity("ab", step), tmp_path)
    assert [path.name for path in sorted((tmp_path / "client").iterdir())] == ["step-000003", "step-2000000"]
    assert newest(tmp_path, "client").name == "step-2000000"


def test_a_write_that_fails_leaves_the_last_checkpoint(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client_folder, _ = saved(tiny, tmp_path, {})
    model, recipe, _ = load_client(client_folder, str)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bitseam.runs.checkpoint.save_file", full)
    with pytest.raises(ModelError, match=r"step 4 could not be written.*No space left"):
        save_client(model, recipe, Identity("ab", 4), tmp_path)
    assert [path.name for path in (tmp_path / "client").iterdir()] == ["step-000003"]
    load_client(client_folder, str)


@pytest.mark.parametrize("damage", ["absent", "cut", "foreign", "no config"])
def test_damaged_checkpoints_are_named(tiny: Tiny, tmp_path: Path, damage: str) -> None:
    folder, _ = saved(tiny, tmp_path, {})
    path = folder / "model.safetensors"
    if damage == "absent":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "foreign":
        save_file({"other": torch.zeros(1)}, path)
    else:
        shutil.rmtree(folder)
    with pytest.raises(ModelError, match=str(folder)):
        load_client(folder, str)


def test_no_checkpoint_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no checkpoint there; train first"):
        newest(tmp_path, "client")


@pytest.mark.parametrize("at", ["rmtree", "replace"])
def test_a_process_killed_while_it_writes_leaves_whole_checkpoints_alone(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    recipe = make_recipe(tiny, out=str(tmp_path))
    model = build_client(recipe, str)
    for step in (1, 2):
        save_client(model, recipe, Identity("ab", step), tmp_path)

    class Killed(BaseException):
        pass

    def killed(path: object, *_: object, **__: object) -> None:
        for file in list(Path(str(path)).rglob("*"))[:1]:
            file.unlink()  # half done
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shutil if at == "rmtree" else os, at, killed)
        with pytest.raises(Killed):
            save_client(model, recipe, Identity("ab", 3), tmp_path)
    run, steps = held(recipe, "client")
    assert run == "ab"
    assert set(steps) >= {2}
    for step in steps:
        load_client(folder_of(tmp_path, "client", step), str)
    save_client(model, recipe, Identity("ab", 4), tmp_path)
    assert not list((tmp_path / "client").glob(".partial-*"))


def test_a_merge_into_a_place_that_cannot_be_written_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file/merged"):
        with pytest.raises(ConfigError, match=f"^{out}: cannot be written: "):
            merge(tmp_path / "absent", tmp_path / "absent", out, str)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_merge_that_fails_leaves_what_was_merged_before(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, server = saved(tiny, tmp_path, {})
    out = tmp_path / "merged [1] {x}"
    merge(client, server, out, str)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert "model.safetensors" in before

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedTokenizerBase.save_pretrained", full)
    with pytest.raises(ModelError, match=r"the merged model could not be written: .*No space left"):
        merge(client, server, out, str)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
