"""Rule 4: split with the identity codec, loss, logits and gradients are those of the unsplit transformers model."""

from __future__ import annotations

import pytest
import torch
from conftest import WORDS, Tiny, make_recipe
from pairs import IDENTITY
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from bitseam.runs.checkpoint import build_client, build_server
from bitseam.text.batch import TextBatch
from bitseam.text.prompts import Prompter

IMAGE = WORDS.index("<image>")


def padded(text: TextBatch, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """A ragged batch as transformers wants it: ids with image placeholders, mask, labels; padded on the right."""
    starts = torch.cumsum(text.lengths, 0) - text.lengths
    rows = []
    for start, length, at in zip(starts, text.lengths, text.image_at, strict=True):
        ids, answers = text.ids[start : start + length], text.answers[start : start + length]
        whole = torch.cat([ids[:at], torch.full((tokens,), IMAGE), ids[at:]])
        labels = torch.full_like(whole, -100)
        place = torch.nonzero(answers)[:, 0]
        labels[place + tokens * (place >= at)] = ids[answers]
        rows.append((whole, torch.ones_like(whole), labels))
    pads = (0, 0, -100)
    return tuple(
        torch.nn.utils.rnn.pad_sequence([row[i] for row in rows], batch_first=True, padding_value=pads[i])
        for i in range(3)
    )


@pytest.mark.parametrize("images", ["abc", "aab", "aaa"])  # which image each question is about
@pytest.mark.parametrize("images_first", [True, False])
def test_llava_checkpoint(tiny: Tiny, images_first: bool, images: str) -> None:
    prompt = "{image} {question}" if images_first else "what {question} {image}"
    recipe = make_recipe(
        tiny,
        client__checkpoint=tiny.llava,
        server__checkpoint=tiny.llava,
        client__tune_vision=True,
        text__prompt=prompt,
        **IDENTITY,
    )
    client, server = build_client(recipe, str), build_server(recipe, str)
    whole = LlavaForConditionalGeneration.from_pretrained(tiny.llava)
    questions, answers = ["is this a cat ?", "what is there ?", "dog ?"], ["yes", "a red cat", "no"]
    text = Prompter(recipe.text).batch(questions, answers, images)
    pixels = torch.randn(len(set(images)), 3, 28, 28, generator=torch.Generator().manual_seed(1))
    tokens = client.vision.tokens

    levels = client.senders()["image"](client.vision(client.vision.features(pixels))).levels
    logits, ids = server.answer_logits(text, {"image": levels})
    loss = server.loss(text, {"image": levels}) / len(ids)
    loss.backward()

    input_ids, mask, labels = padded(text, tokens)
    expected = whole(input_ids=input_ids, pixel_values=pixels[text.image], attention_mask=mask, labels=labels)
    expected.loss.backward()

    predicting = expected.logits[:, :-1][labels[:, 1:] != -100]
    torch.testing.assert_close(logits, predicting, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss, expected.loss, rtol=1e-5, atol=1e-6)
    ours = {
        **{f"model.vision_tower.{k}": p for k, p in client.vision.tower.llava.model.vision_tower.named_parameters()},
        **{f"model.multi_modal_projector.{k}": p for k, p in client.vision.connector.named_parameters()},
        **{f"model.language_model.{k}": p for k, p in server.language.model.model.named_parameters()},
    }
    theirs = {k: p for k, p in whole.named_parameters() if k != "lm_head.weight"}
    assert ours.keys() == theirs.keys()
    for name, parameter in theirs.items():
        if parameter.grad is None:
            assert ours[name].grad is None, name
            continue
        torch.testing.assert_close(
            ours[name].grad, parameter.grad, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )
    trained = [name for name, parameter in theirs.items() if parameter.grad is not None]
    assert any("vision_tower" in name for name in trained)
    assert any("language_model.embed_tokens" in name for name in trained)


def test_untied_head_is_read_from_the_checkpoint(tiny: Tiny, tmp_path) -> None:
    whole = LlavaForConditionalGeneration.from_pretrained(tiny.llava)
    cfg = whole.config
    cfg.tie_word_embeddings = cfg.text_config.tie_word_embeddings = False
    untied = LlavaForConditionalGeneration(cfg)
    untied.save_pretrained(tmp_path)
    server = build_server(make_recipe(tiny, server__checkpoint=str(tmp_path)), str)
    assert torch.equal(server.language.model.get_output_embeddings().weight, untied.lm_head.weight)
    assert not torch.equal(untied.lm_head.weight, untied.get_input_embeddings().weight)


def test_each_half_holds_its_own_weights_alone(tiny: Tiny) -> None:
    recipe = make_recipe(tiny, client__checkpoint=tiny.llava, server__checkpoint=tiny.llava, **IDENTITY)
    whole = LlavaForConditionalGeneration.from_pretrained(tiny.llava)
    count = {
        part: sum(p.numel() for p in getattr(whole.model, part).parameters())
        for part in ("vision_tower", "multi_modal_projector", "language_model")
    }
    client, server = build_client(recipe, str), build_server(recipe, str)
    assert sum(p.numel() for p in client.parameters()) == count["vision_tower"] + count["multi_modal_projector"]
    assert sum(p.numel() for p in server.parameters()) == count["language_model"]


def test_generation_with_padding_equals_one_by_one(tiny: Tiny) -> None:
    recipe = make_recipe(tiny, **IDENTITY)
    client, server = build_client(recipe, str).eval(), build_server(recipe, str).eval()
    prompter = Prompter(recipe.text)
    questions = ["is this a cat ?", "dog ?", "what is there red blue ?"]
    pixels = torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        levels = client.senders()["image"](client.vision(client.vision.features(pixels))).levels
        together = server.generate(prompter.batch(questions), {"image": levels}, 5, prompter.end)
        for i, question in enumerate(questions):
            alone = server.generate(prompter.batch([question]), {"image": levels[i : i + 1]}, 5, prompter.end)[0]
            assert prompter.decode(alone.tolist()) == prompter.decode(together[i].tolist())
