"""Small parts of both halves that whole models do not show: devices, settings, warnings, the pictures of a proof."""

from __future__ import annotations

import inspect
import logging
import warnings
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Tiny, make_recipe
from PIL import Image
from small_models import made
from test_layout import images, model_of, text_of
from torch import nn

from bitseam.errors import ModelError
from bitseam.models.device import choose_device
from bitseam.models.language.half import _adaptable, load_language_half
from bitseam.models.language.loading import load_language
from bitseam.models.proof import _Found, prove
from bitseam.models.server import Ways
from bitseam.models.trial import TOLERANCES, Trial
from bitseam.models.vision import framing, pictures
from bitseam.models.vision.pictures import quiet, upright_rgb


def test_devices_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [choose_device(name).type for name in ("cpu", "auto", "cuda")] == ["cpu", "cuda", "cuda"]


# Language models


def test_a_llava_is_loaded_without_a_word(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        language = load_language(tiny.llava)
    assert not caplog.records
    assert language.generation_config is not None
    assert language.lm_head.weight.shape == (16, 32)


def test_weights_are_never_divided_in_place(tmp_path: Path) -> None:
    model = made("RwkvConfig", attention_hidden_size=32, context_length=32)
    assert model.config.rescale_every
    model.save_pretrained(tmp_path)
    assert load_language(str(tmp_path)).config.rescale_every == 0


def test_a_forward_pass_has_no_cache_and_takes_only_what_the_model_takes(tiny: Tiny) -> None:
    half = load_language_half(make_recipe(tiny).server).eval()
    out = half.run(input_ids=torch.tensor([[3, 4]]), labels=None, nobody_takes_this=1)
    assert out.past_key_values is None


def test_adapters_are_put_on_stacks_of_experts_once() -> None:
    model = nn.Module()
    model.experts = nn.Module()
    model.experts.weight = nn.Parameter(torch.zeros(2, 3, 4))
    model.experts.bias = nn.Parameter(torch.zeros(2, 3))
    model.experts.inner = nn.Module()
    model.experts.inner.deep = nn.Parameter(torch.zeros(2, 3, 4))
    model.experts.gate = nn.Linear(3, 4)
    model.state = nn.Module()
    model.state.A_log = nn.Parameter(torch.zeros(3))
    model.state.out_proj, model.state.in_proj = nn.Linear(3, 3), nn.Linear(3, 3)
    model.words = nn.Embedding(5, 3)
    layers, stacks = _adaptable(model)
    assert list(layers) == ["experts.gate", "state.in_proj", "words"]
    assert stacks == ["experts.weight", "experts.inner.deep"]


def test_the_worst_of_all_differences_counts(tiny: Tiny) -> None:
    trials: Any = [None]

    def off(**sizes: float) -> Any:
        return lambda trial, ways: {name: size * TOLERANCES[name] for name, size in sizes.items()}

    every = {"packed": Ways("packed")}
    for sizes in ({"loss": 0.0, "gradient by the embeddings": 1.1}, {"loss": 1.1, "gradient by the embeddings": 1.05}):
        what = max(sizes, key=lambda name: sizes[name])
        with pytest.raises(ModelError, match=f"{what} 1.1e-0[34] from its own, relative, where 1e-0[34] may be"):
            _Found().first(every, trials, off(**sizes))
    assert _Found().first(every, trials, off(**{"loss": 1.0, "gradient by the embeddings": 1.0})) == Ways("packed")
    assert TOLERANCES == {"loss": 1e-4, "gradient by the embeddings": 1e-3, "answers": 1e-4}


def test_what_a_proof_of_a_sound_model_finds(tiny: Tiny) -> None:
    recipe = make_recipe(tiny)
    proof = prove(model_of(tiny), recipe)
    assert proof.ways == Ways("packed", False, "together", None)
    assert proof.others == {}
    assert list(proof.differences) == ["loss", "gradient by the embeddings", "answers"]
    assert proof.packs
    assert proof.batches_answers
    assert 0 < proof.seconds < 60
    asked = prove(model_of(tiny), recipe, training=False)
    assert asked.ways == Ways("alone", False, "together", None)
    assert list(asked.differences) == ["answers"]


def test_differences_of_answers_are_relative_to_the_models_own(tiny: Tiny) -> None:
    trial = Trial(model_of(tiny), (), 0)
    trial.answer(Ways())
    assert [step.shape for step in trial._steps] == [(3, 16)] * 2  # three tokens of two questions
    trial._steps = [2 * step for step in trial._steps]
    assert trial.answer(Ways())["answers"] == pytest.approx(0.5, rel=1e-3)


def test_generating_records_no_gradients(tiny: Tiny) -> None:
    model = model_of(tiny)
    text = text_of([3], [1], [0], [4, 5, 6])
    rows = model.embed(text, {"image": images(text)})
    with torch.enable_grad():
        for answers in ("alone", "uncached"):
            out = model.answers(text, *rows, Ways(answers=answers), 2, (), 0)  # type: ignore[arg-type]
            assert out.shape == (1, 2)
            assert not out.requires_grad


# Pictures


def test_a_pictures_orientation_is_followed() -> None:
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3).repeat(3).reshape(2, 3, 3))
    exif = Image.Exif()
    for orientation, due in ((1, [[0, 1, 2], [3, 4, 5]]), (3, [[5, 4, 3], [2, 1, 0]]), (6, [[3, 0], [4, 1], [5, 2]])):
        exif[0x112] = orientation
        kept = BytesIO()
        image.save(kept, "png", exif=exif)
        assert np.asarray(upright_rgb(Image.open(kept)))[..., 0].tolist() == due


def test_warnings_are_silent_for_a_while_and_then_not() -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with quiet():
            warnings.warn("one", stacklevel=1)
            with quiet():
                warnings.warn("two", stacklevel=1)
            warnings.warn("three", stacklevel=1)
        warnings.warn("four", stacklevel=1)
    assert [str(one.message) for one in shown] == ["four"]
    assert pictures._silent == 0


def test_what_a_decoder_warns_of_is_not_shown() -> None:
    class Warns(Image.Image):
        def load(self) -> Any:
            warnings.warn("corrupt", stacklevel=1)
            return super().load()

    image = Warns()
    whole = Image.new("RGB", (2, 2), "red")
    image._mode, image._size, image.im = whole.mode, whole.size, whole.im
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert upright_rgb(image).tobytes() == whole.tobytes()


def test_the_pictures_of_a_proof_are_slopes() -> None:
    slopes = np.asarray(framing._slopes(3, 2))
    assert slopes[..., 0].tolist() == [[0, 127, 255]] * 2
    assert slopes[..., 1].tolist() == [[0] * 3, [255] * 3]
    assert slopes[..., 2].tolist() == [[0, 63, 127], [127, 191, 255]]
    assert [picture.size for picture in framing._PICTURES] == [(384, 256), (256, 384), (1280, 320)]


def processor(make: Any, **settings: Any) -> Any:
    """Called with pictures, it gives what `make` makes of their number, and their places in the call."""

    class Processor:
        def __call__(self, images: Any, return_tensors: str, **more: Any) -> dict[str, Any]:
            assert return_tensors == "pt"
            return {"pixel_values": make(images, more)}

    made = Processor()
    for name, value in settings.items():
        setattr(made, name, value)
    return made


def test_processors_whose_pictures_depend_on_each_other_are_refused() -> None:
    def mixed(images: Any, _: Any) -> torch.Tensor:
        return torch.stack([torch.full((3, 4, 4), float(len(images) == 3 and i == 1)) for i in range(len(images))])

    with pytest.raises(
        ModelError, match=r"a Processor, does not fit: a picture's pixels depend on the pictures beside"
    ):
        framing.own_framing(processor(mixed))


def test_processors_that_make_no_pictures_are_refused() -> None:
    for shape in ((3, 4, 4), (1, 4, 4)):
        with pytest.raises(ModelError, match=r"3 pictures become an array of shape \[3"):
            framing.own_framing(processor(lambda images, _, shape=shape: torch.zeros(len(images), *shape[1:])))
    with pytest.raises(ModelError, match="its pictures are not all of one square size"):
        framing.own_framing(processor(lambda images, _: torch.zeros(len(images), 3, 4, 5)))


def test_the_middle_square_is_taken_where_a_processor_leaves_oblong_pictures() -> None:
    def oblong(images: Any, more: Any) -> torch.Tensor:
        side = more["crop_size"]["width"] if more.get("do_center_crop") else 9
        return torch.zeros(len(images), 3, 8, side)

    resizes = processor(oblong, size={"shortest_edge": 8}, do_resize=True)
    assert framing.own_framing(resizes) == (8, {"do_center_crop": True, "crop_size": {"height": 8, "width": 8}})
    for settings in ({"do_resize": False, "size": {"shortest_edge": 8}}, {"do_resize": True, "size": {"height": 8}}):
        with pytest.raises(ModelError, match="not all of one square size"):
            framing.own_framing(processor(oblong, **settings))
    assert framing.own_framing(processor(lambda images, _: torch.zeros(len(images), 3, 6, 6))) == (6, {})


def test_a_namespace_is_no_processor() -> None:
    with pytest.raises(ModelError, match="a SimpleNamespace, does not fit"):
        framing.own_framing(SimpleNamespace())


def test_a_model_that_asks_for_more_in_training_is_refused_where_it_is_trained(tiny: Tiny) -> None:
    model, recipe = model_of(tiny), make_recipe(tiny)
    forward = model.language.base.forward

    def asking(*args: Any, **named: Any) -> Any:
        if model.language.base.training:
            raise ValueError("token_type_ids are needed")
        return forward(*args, **named)

    asking.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    model.language.base.forward = asking
    model.language.model.requires_grad_(True)
    with pytest.raises(
        ModelError, match=r"^server.checkpoint \(llama, LlamaForCausalLM\) cannot be split: token_type_i"
    ):
        prove(model, recipe)
    prove(model, recipe, training=False)


def test_adapters_are_of_a_causal_language_model(tiny: Tiny) -> None:
    half = load_language_half(make_recipe(tiny, server__tune="lora").server)
    assert type(half.model).__name__ == "PeftModelForCausalLM"
    assert type(half.base).__name__ == "LlamaForCausalLM"
    settings = half.model.peft_config["default"]
    assert (settings.r, settings.lora_alpha, settings.lora_dropout) == (16, 32, 0.0)
    assert not settings.target_parameters
    assert {name.rpartition(".")[2] for name in settings.target_modules} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }


def test_grey_of_eight_bits_ends_at_255() -> None:
    image = Image.fromarray(np.array([[0, 200, 256]], np.int32))
    assert np.asarray(upright_rgb(image))[0, :, 0].tolist() == [0, 199, 255]
