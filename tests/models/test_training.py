"""What trains is float32 and moves; what is frozen answers as it will later."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as hf
from conftest import Tiny, load_benchmark, make_recipe
from torch import nn

from bitseam import config
from bitseam.models.vision.half import VisionHalf, load_vision_half
from bitseam.runs.checkpoint import FRESH, Identity, build_client, build_server, save_client, save_server
from bitseam.runs.merge import BitseamModel, merge
from bitseam.runs.optimise import Stepper
from bitseam.text.prompts import Prompter

towers, tiny_towers = load_benchmark("equality_towers"), load_benchmark("tiny_towers")
TRAIN = config.Train(steps=4, batch=1, warmup=0.0)


def saved(model: nn.Module, processor: object, folder: Path, dtype: torch.dtype = torch.float32) -> str:
    """The same weights in every type: those of the coarsest."""
    tiny_towers.redraw(model)
    model.bfloat16().half().to(dtype).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def trained(half: VisionHalf) -> dict[str, torch.Tensor]:
    """How every trained weight has moved after three small steps."""
    stepper = Stepper(half, 1e-4, TRAIN)
    before = {name: p.detach().clone() for name, p in half.named_parameters() if p.requires_grad}
    half.train()
    pixels = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        (half(half.features(pixels)) ** 2).sum().backward()
        stepper.step(1)
    assert {value.dtype for name, value in stepper.state().items() if "/exp" in name} == {torch.float32}
    return {name: p.detach() - before[name] for name, p in half.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("name", "tune"), [("dinov2", True), ("clip", True), ("llava", False), ("llava", True), ("dinov2", False)]
)
def test_M4_half_precision_checkpoints_train_as_float32(
    name: str, tune: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    moved = []
    for i, kind in enumerate((torch.float32, dtype)):
        torch.manual_seed(0)
        model = tiny_towers.llava() if name == "llava" else tiny_towers.TOWERS[name].make()
        checkpoint = saved(model, tiny_towers.crop_of_shortest(56), tmp_path / str(i), kind)
        torch.manual_seed(0)
        moved.append(trained(towers.load(checkpoint, tune_vision=tune)))
    due, found = moved
    assert due.keys() == found.keys()
    assert all(("tower" in each) <= tune for each in due)
    for each, move in due.items():
        torch.testing.assert_close(found[each], move, rtol=1e-3, atol=1e-6, msg=each)
    assert sum(bool(move.any()) for move in due.values()) > len(due) // 2


def test_M4_every_tensor_is_float32_and_a_merged_model_too(tiny: Tiny, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = hf.LlavaForConditionalGeneration.from_pretrained(tiny.llava, dtype=torch.bfloat16)
    whole.save_pretrained(tmp_path / "half")
    for name in ("preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        if (Path(tiny.llava) / name).exists():
            (tmp_path / "half" / name).write_text((Path(tiny.llava) / name).read_text())
    checkpoint = str(tmp_path / "half")
    recipe = make_recipe(tiny, client__checkpoint=checkpoint, server__checkpoint=checkpoint, client__tune_vision=True)
    client, server = build_client(recipe, str).eval(), build_server(recipe, str).eval()
    for model in (client, server):
        assert {t.dtype for t in model.state_dict().values() if t.is_floating_point()} == {torch.float32}
        with torch.no_grad():
            for p in model.parameters():
                p += 1e-4 * torch.randn_like(p)  # less than half precision tells
    folders = [save(model, recipe, Identity(FRESH, 0), tmp_path / "run") for save, model in
               ((save_client, client), (save_server, server))]  # fmt: skip
    merge(*folders, tmp_path / "merged", str)
    merged = BitseamModel.from_pretrained(tmp_path / "merged").eval()
    assert {t.dtype for t in merged.state_dict().values() if t.is_floating_point()} == {torch.float32}
    for part, model in (("client.", client), ("server.", server)):
        for name, tensor in model.state_dict().items():
            assert torch.equal(merged.state_dict()[part + name], tensor), name
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    assert torch.equal(merged.client.vision.features(pixels), client.vision.features(pixels))


@pytest.mark.parametrize("name", ["vit", "clip", "swin"])
def test_M4_a_merged_tower_of_another_kind_is_cut_as_before(name: str, tiny: Tiny, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tower = tiny_towers.TOWERS[name]
    checkpoint = saved(tower.make(), tower.processor(tower.side), tmp_path / "tower", torch.bfloat16)
    recipe = make_recipe(tiny, client__checkpoint=checkpoint, client__image_size=tower.side, client__merge=1)
    client, server = build_client(recipe, str).eval(), build_server(recipe, str).eval()
    folders = [save(model, recipe, Identity(FRESH, 0), tmp_path / "run") for save, model in
               ((save_client, client), (save_server, server))]  # fmt: skip
    merge(*folders, tmp_path / "merged", str)
    merged = BitseamModel.from_pretrained(tmp_path / "merged").eval()
    pixels = client.vision.pixels(towers.pictures())
    assert torch.equal(merged.client.vision.pixels(towers.pictures()), pixels)
    torch.testing.assert_close(merged.client.vision.features(pixels), client.vision.features(pixels))


DROPPING = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}


def restless(folder: Path, kind: str, tune: bool) -> VisionHalf:
    """A tower that answers by chance or by its neighbours in training mode."""
    torch.manual_seed(0)
    models = {
        "dropout": lambda: hf.ViTModel(hf.ViTConfig(**tiny_towers.VIT, **DROPPING)),
        "drop path": lambda: hf.Dinov2Model(hf.Dinov2Config(**tiny_towers.VIT, drop_path_rate=0.5)),
        "batch norm": tiny_towers.TOWERS["resnet"].make,
        "llava": tiny_towers.llava,
    }
    model, side = models[kind](), 64 if kind == "batch norm" else 56
    if kind == "llava":
        model.config.vision_config.attention_dropout = 0.5
    checkpoint = saved(model, tiny_towers.crop_of_shortest(side), folder)
    settings = config.Client(checkpoint=checkpoint, image_size=side, tune_vision=tune)
    return load_vision_half(settings, tiny_towers.WIDTH)


@pytest.mark.parametrize("kind", ["dropout", "drop path", "batch norm", "llava"])
def test_M7_a_frozen_tower_says_the_same_in_training(kind: str, tmp_path: Path) -> None:
    half = restless(tmp_path, kind, tune=False)
    above = nn.ModuleList([half])
    pixels = torch.randn(2, 3, *[64 if kind == "batch norm" else 56] * 2)
    due = half.eval().features(pixels)
    state = {name: tensor.clone() for name, tensor in half.state_dict().items()}
    for mode in (True, False, True):
        above.train(mode)
        assert torch.equal(half.features(pixels), due)
    assert all(torch.equal(tensor, state[name]) for name, tensor in half.state_dict().items())


@pytest.mark.parametrize("kind", ["dropout", "drop path", "llava"])
def test_M7_a_tuned_tower_drops_in_training_alone(kind: str, tmp_path: Path) -> None:
    half = restless(tmp_path, kind, tune=True)
    pixels = torch.randn(2, 3, 56, 56)
    assert not torch.equal(half.train().features(pixels), half.features(pixels))
    assert torch.equal(half.eval().features(pixels), half.features(pixels))


def test_M7_batch_norms_of_a_tuned_tower_keep_images_apart(tmp_path: Path) -> None:
    half = restless(tmp_path, "batch norm", tune=True).train()
    pixels = torch.randn(3, 3, 64, 64)
    torch.testing.assert_close(half.features(pixels)[:1], half.features(pixels[:1]), rtol=1e-4, atol=1e-5)
    assert half.features(pixels).requires_grad


@pytest.mark.parametrize("tune", ["frozen", "lora", "full"])
def test_M7_a_frozen_language_model_says_the_same_in_training(tune: str, tiny: Tiny, tmp_path: Path) -> None:
    language = hf.LlamaForCausalLM.from_pretrained(tiny.language)
    language.config.attention_dropout = 0.5
    language.save_pretrained(tmp_path)
    recipe = make_recipe(tiny, server__checkpoint=str(tmp_path), server__tune=tune)
    server = build_server(recipe, str)
    text = Prompter(recipe.text).batch(["what is this ?"], ["yes"])
    image = torch.randn(1, 4, 32)
    torch.manual_seed(0)
    due = server.eval().loss(text, {"image": image})
    losses = {server.train().loss(text, {"image": image}).item() for _ in range(3)}
    assert (losses == {due.item()}) == (tune != "full")


def test_M7_adapters_keep_their_own_dropout(tiny: Tiny) -> None:
    recipe = make_recipe(tiny, server__tune="lora", server__lora={"dropout": 0.5})
    server = build_server(recipe, str)
    with torch.no_grad():
        for name, p in server.named_parameters():
            if "lora_B" in name:
                p.normal_()
    text = Prompter(recipe.text).batch(["what is this ?"], ["yes"])
    image = torch.randn(1, 4, 32)
    server.train()
    assert len({server.loss(text, {"image": image}).item() for _ in range(3)}) == 3
    server.eval()
    assert len({server.loss(text, {"image": image}).item() for _ in range(3)}) == 1
