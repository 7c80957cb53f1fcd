"""What does not fit is said at load or in the handshake, with both numbers: tokenizer, embedding, width, positions."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import WORDS, Tiny, make_recipe
from small_models import made
from transformers import AutoTokenizer

from bitseam.errors import BitseamError, CodecError, LimitError, ModelError, RefusedError
from bitseam.models.language.half import LanguageHalf
from bitseam.models.positions import most_positions
from bitseam.runs.checkpoint import build_client
from bitseam.sessions.client import ClientSession
from bitseam.sessions.limits import require_context, require_image, require_rows, session_limits
from bitseam.sessions.party import ServerParty
from bitseam.sessions.server import ServerSession
from bitseam.sessions.terms import terms
from bitseam.text.batch import TextBatch
from bitseam.text.prompts import Prompter
from bitseam.transport import Channel, memory_pair

N = 40
TABLES: dict[str, tuple[str, dict[str, Any], int | None]] = {  # configuration, changes, positions of the model
    "gpt-2": ("GPT2Config", {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": N}, N),
    "gpt-neo": ("GPTNeoConfig", {"num_layers": 2, "num_heads": 2, "attention_types": [[["global"], 2]]}, N),
    "opt": ("OPTConfig", {"ffn_dim": 48, "word_embed_proj_dim": 32}, N),
    "bert": ("BertConfig", {"is_decoder": True}, N),
    "roberta": ("RobertaConfig", {"is_decoder": True, "pad_token_id": 1}, N - 2),
    "gpt-j": ("GPTJConfig", {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": N, "rotary_dim": 4}, N),
    "ctrl": ("CTRLConfig", {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": N, "dff": 48}, N),
    "llama": ("LlamaConfig", {}, None),
    "xglm": ("XGLMConfig", {"d_model": 32, "num_layers": 1, "attention_heads": 2, "ffn_dim": 48}, None),
    "bloom": ("BloomConfig", {}, None),
    "mamba": ("MambaConfig", {"state_size": 8}, None),
}


def model_of(kind: str) -> Any:
    name, changes, _ = TABLES[kind]
    return made(name, **{"max_position_embeddings": N} | changes)


@pytest.mark.parametrize("kind", TABLES)
def test_M16_positions_are_found_in_the_model(kind: str) -> None:
    half, positions = LanguageHalf(model_of(kind).eval()), TABLES[kind][2]
    assert most_positions(half, 100) == positions
    assert most_positions(half, N - 2) is None  # no row is longer than that


def party(tiny: Tiny, out: Path, model: Any = None, **changes: Any) -> ServerParty:
    if model is not None:
        model.save_pretrained(out / "model")
        changes["server__checkpoint"] = str(out / "model")
    return ServerParty(make_recipe(tiny, out=str(out / "run"), **changes), str)


@pytest.mark.parametrize("words", [1, 30])
def test_D13_a_tokenizer_larger_than_the_embedding_is_refused_at_load(tiny: Tiny, tmp_path: Path, words: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny.tokenizer)
    tokenizer.add_tokens([f"more{i}" for i in range(words)])
    tokenizer.save_pretrained(tmp_path / "words")
    told = rf"text.tokenizer .* has {len(WORDS) + words} token ids, server.checkpoint .* embeddings for {len(WORDS)}"
    with pytest.raises(ModelError, match=told):
        party(tiny, tmp_path, text__tokenizer=str(tmp_path / "words"))


def test_D13_an_embedding_with_rows_to_spare_is_none(tiny: Tiny, tmp_path: Path) -> None:
    model = model_of("llama")
    model.resize_token_embeddings(64)
    party(tiny, tmp_path, model)


def test_M16_a_seam_of_another_width(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"seam.width is 48, but the language model's embeddings have 32"):
        party(tiny, tmp_path, seam__width=48)


def test_M16_rows_longer_than_the_table_are_refused_at_load(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"text.max_tokens is 40, but .* has 40 positions, for the image too"):
        party(tiny, tmp_path, model_of("gpt-2"), text__max_tokens=40)


def shake_hands(server: ServerParty, tiny: Tiny, training: bool, **changes: Any) -> None:
    """Open a session of a client with another recipe. Raises what the client is told."""
    ours, recipe = server.recipe, make_recipe(tiny, **changes)
    prompter = Prompter(ours.text)
    left, right = memory_pair()

    def serve(channel: Channel) -> None:
        try:
            ServerSession(server, channel).run()
        except BitseamError:
            pass
        finally:
            channel.close()

    thread = threading.Thread(target=serve, args=(right,))
    thread.start()
    weights = None if training else "fresh"
    try:
        model = build_client(recipe, str)
        with ClientSession(model, lambda: left, prompter.vocabulary) as session:
            session.open(terms(ours, model.senders(), prompter, weights), training)
    finally:
        thread.join(20)


@pytest.mark.parametrize("training", [True, False])
def test_M16_images_that_leave_no_room_are_refused_in_the_handshake(tiny: Tiny, tmp_path: Path, training: bool) -> None:
    server = party(tiny, tmp_path, model_of("gpt-2"), text__max_tokens=30, seam__max_tokens=12)
    with pytest.raises(RefusedError, match=r"16 tokens long; seam.max_tokens is 12"):
        shake_hands(server, tiny, training, client__merge=1)
    shake_hands(server, tiny, training, client__merge=2)  # 4 and 30 of 40
    server = party(tiny, tmp_path / "tight", model_of("gpt-2"), text__max_tokens=37)
    with pytest.raises(RefusedError, match=r"4 tokens .*text.max_tokens is 37, together 41, but .* has 40 positions"):
        shake_hands(server, tiny, training, client__merge=2)


def test_M16_bounds_are_bounds(tiny: Tiny) -> None:
    recipe = make_recipe(tiny, seam__max_tokens=8)
    require_image(8, session_limits(recipe, 16))
    require_image(8, session_limits(recipe, 16, 40))  # with text.max_tokens = 32
    require_image(0, session_limits(recipe, 16, 32))  # a client that does not say
    for tokens, positions in ((9, None), (8, 39)):
        with pytest.raises(RefusedError):
            require_image(tokens, session_limits(recipe, 16, positions))


def text_of(image_at: int, answers: list[bool]) -> TextBatch:
    count = len(answers)
    return TextBatch(
        torch.arange(count), torch.tensor([count]), torch.tensor([image_at]), torch.tensor([0]), torch.tensor(answers)
    )


def test_M16_a_question_with_its_answer_is_not_longer_than_the_table(tiny: Tiny) -> None:
    limits, text = session_limits(make_recipe(tiny), 16, 40), text_of(1, [False] * 6)
    require_rows(text, limits, image_tokens=4, new=30)
    with pytest.raises(LimitError, match=r"6 tokens, 4 of the image and 31 new ones .* model's 40 positions"):
        require_rows(text, limits, image_tokens=4, new=31)


def test_D1_an_answer_that_nothing_stands_before_is_refused() -> None:
    require_context(text_of(0, [True, True]), training=True)  # behind the image
    require_context(text_of(1, [False, True]), training=True)
    with pytest.raises(CodecError, match="begins with an answer"):
        require_context(text_of(1, [True, True]), training=True)


def test_something_follows_the_image_in_training_but_not_in_a_question() -> None:
    require_context(text_of(2, [False, False]), training=False)
    with pytest.raises(CodecError, match="nothing follows the image"):
        require_context(text_of(2, [False, False]), training=True)
