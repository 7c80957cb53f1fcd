"""Prompts: where the image and the question go, what a question cannot do, and tokenizers that are refused by name."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizer_kinds import KINDS, byte_fallback, byte_level, save, unigram, word_level, word_piece, wrap
from tokenizers import Regex, normalizers
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from bitseam import config
from bitseam.errors import DataError, ModelError
from bitseam.text.prompts import Prompter

LLAVA = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
QWEN = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.content is string %}"
    "{{ message.content }}{% else %}{% for part in message.content %}{% if part.type == 'image' or 'image' in part %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in part %}{{ part.text }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMOL = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content | trim }}{% else %}{% for item in message.content %}"
    "{% if item.type == 'image' %}<start_of_image>{% elif item.type == 'text' %}{{ item.text | trim }}{% endif %}"
    "{% endfor %}{% endif %}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
GLM = (
    "{% for m in messages %}<|user|>{% for c in m.content %}{% if c.type == 'image' %}"
    "<|begin_of_image|><|image|><|end_of_image|>{% else %}{{ c.text }}{% endif %}{% endfor %}{% endfor %}<|assistant|>"
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BRACKETS = "{{ bos_token }}{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"
SECOND = "{% for m in messages %}{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% endif %}{% endfor %}"
LAST = SECOND + "{% for c in m.content %}{% if c.type == 'image' %}[IMG]{% endif %}{% endfor %}{% endfor %} A:"
IMG = (
    "U: {% for c in messages[0].content %}{% if c.type == 'image' %}<img><imgpad><imgpad></img>{% else %}{{ c.text }}"
    "{% endif %}{% endfor %}"
)
DATE = (  # of today, in Mistral Small 3.1 and Llama 3.2; a run that goes on tomorrow needs the prompts of today
    "{{ bos_token }}[SYSTEM_PROMPT]Today is {{ strftime_now('%Y-%m-%d') }}, {{ strftime_now('%d %b %Y') }}."
    "[/SYSTEM_PROMPT]{% for m in messages %}[INST]{% for c in m.content %}{% if c.type == 'image' %}[IMG]{% else %}"
    "{{ c.text }}{% endif %}{% endfor %}[/INST]{% endfor %}"
)
MARKS = (
    "<|im_start|>", "<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<end_of_utterance>", "<start_of_image>",
    "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "<|begin_of_image|>", "<|image|>", "<|end_of_image|>",
    "<|user|>", "<|assistant|>", "[IMG]",
)  # fmt: skip


def chat_tokenizer(template: Any, **options: Any) -> PreTrainedTokenizerFast:
    tokenizer = wrap(byte_level(), MARKS, **options)
    tokenizer.chat_template = template
    return tokenizer


def prompter_of(folder: Path, tokenizer: PreTrainedTokenizerFast, prompt: str = "chat", **options: Any) -> Prompter:
    return Prompter(config.Text(tokenizer=save(folder, tokenizer), prompt=prompt, **options))


def sides(prompter: Prompter, question: str) -> tuple[str, str]:
    """The text of the ids before and behind the image, specials shown."""
    batch = prompter.batch([question])
    ids, at = batch.ids.tolist(), int(batch.image_at)
    return prompter.tokenizer.decode(ids[:at]), prompter.tokenizer.decode(ids[at:])


EXPECTED = {
    "llava": (LLAVA, "USER: ", "\nis it? ASSISTANT:"),
    "qwen": (
        QWEN,
        "<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\n<|vision_start|>",
        "<|vision_end|>is it?<|im_end|>\n<|im_start|>assistant\n",
    ),
    "smol": (SMOL, "<|im_start|>User:", "is it?<end_of_utterance>\nAssistant:"),
    "gemma": (GEMMA, "<s><start_of_turn>user\n", "is it?<end_of_turn>\n<start_of_turn>model\n"),
    "glm": (GLM, "<|user|><|begin_of_image|>", "<|end_of_image|>is it?<|assistant|>"),
    "chatml": (CHATML, "<|im_start|>user\n", "\nis it?<|im_end|>\n<|im_start|>assistant\n"),
    "brackets": (BRACKETS, "<s>[INST] ", "\nis it? [/INST]"),
    "last": (LAST, "is it?", " A:"),
    "pair": (IMG, "U: <img>", "</img>is it?"),
    "date": (DATE, "<s>[SYSTEM_PROMPT]Today is 2024-07-26, 26 Jul 2024.[/SYSTEM_PROMPT][INST]", "is it?[/INST]"),
    "json": ('U{{ messages[0].content | tojson(separators=(",", ":")) }}A', 'U"', '\\nis it?"A'),
    "several": ({"default": QWEN, "tools": CHATML}, *("<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\n<|vision_start|>", "<|vision_end|>is it?<|im_end|>\n<|im_start|>assistant\n")),  # noqa: E501
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_D2_a_chat_template_of_either_kind_has_image_and_question_in_their_places(name: str, tmp_path: Path) -> None:
    template, before, behind = EXPECTED[name]
    prompter = prompter_of(tmp_path, chat_tokenizer(template))
    assert sides(prompter, "is it?") == (before, behind)
    ids = [prompter.tokenizer.encode(part, add_special_tokens=False) for part in (before, behind)]
    assert prompter.batch(["is it?"]).ids.tolist() == ids[0] + ids[1]  # as the rendering read whole
    assert prompter.batch(["is it?"]).ids.tolist() != prompter.batch(["is it a dog?"]).ids.tolist()


def test_D2_what_a_llava_processor_saves(tmp_path: Path) -> None:
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer=wrap(byte_level()),
        patch_size=14,
        chat_template=LLAVA,
    )
    processor.save_pretrained(tmp_path)
    prompter = Prompter(config.Text(tokenizer=str(tmp_path)))
    assert sides(prompter, "is it?") == ("USER: ", "\nis it? ASSISTANT:")


def test_D2_a_template_where_processors_kept_it(tmp_path: Path) -> None:
    """`chat_template.json`, as in llava-1.5-7b-hf; what is saved again, as by `merge`, has it too."""
    folder = save(tmp_path / "old", wrap(byte_level()))
    (tmp_path / "old" / "chat_template.json").write_text(json.dumps({"chat_template": LLAVA}))
    prompter = Prompter(config.Text(tokenizer=folder))
    assert sides(prompter, "is it?") == ("USER: ", "\nis it? ASSISTANT:")
    again = Prompter(config.Text(tokenizer=save(tmp_path / "again", prompter.tokenizer)))
    assert sides(again, "is it?") == ("USER: ", "\nis it? ASSISTANT:")
    (tmp_path / "old" / "chat_template.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be loaded: JSONDecodeError"):
        Prompter(config.Text(tokenizer=folder))


BAD = {
    "a question that is dropped": ("{% for m in messages %}USER: {% endfor %}A:", "the question is missing"),
    "no image": ("{% for c in messages[0].content %}{{ c.text }}{% endfor %}", "the image's place is missing"),
    "two images": (
        "{% for c in messages[0].content %}{% if c.type == 'image' %}<image>, <image>{% else %}{{ c.text }}{% endif %}"
        "{% endfor %}",
        "the image's place is there 2 times",
    ),
    "a question twice": (
        "{% if messages[0].content is string %}{{ raise_exception('parts') }}{% endif %}"
        "{% for c in messages[0].content %}{% if c.type == 'image' %}<image>{% else %}{{ c.text * 2 }}{% endif %}"
        "{% endfor %}",
        "the question is there 2 times",
    ),
    "one that raises": ("{{ raise_exception('no [/b] \x1b[2J here') }}", r"it raises TemplateError: no \[/b\] \\x1b"),
    "an undefined filter": ("{{ messages | nothing }}", "it raises TemplateAssertionError"),
    "an undefined value": ("{{ messages[0].a.b }}", "it raises UndefinedError"),
    "no syntax": ("{% for %}", "it raises TemplateSyntaxError"),
    "capitals": ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "the question is missing"),
    "two marks": (
        "{% for c in messages[0].content %}{% if c.type == 'image' %}<image1><image2>{% else %}{{ c.text }}{% endif %}"
        "{% endfor %}",
        "which of <image1> <image2> is the image's place cannot be told",
    ),
    "none by default": ({"tools": QWEN, "rag": QWEN}, "has chat templates .*, and none 'default'"),
}


@pytest.mark.parametrize("name", BAD)
def test_D2_a_template_that_loses_image_or_question_is_refused_at_load(name: str, tmp_path: Path) -> None:
    template, complaint = BAD[name]
    tokenizer = chat_tokenizer(template)
    with pytest.raises(ModelError, match=complaint) as caught:
        prompter_of(tmp_path, tokenizer)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "text.prompt" in str(caught.value)


def test_D2_questions_that_a_tokenizer_cannot_tell_apart_are_refused(tmp_path: Path) -> None:
    backend = word_level()
    backend.normalizer = normalizers.Replace(Regex(r"\S+"), "cat")
    with pytest.raises(ModelError, match="all questions are alike"):
        prompter_of(tmp_path, wrap(backend), "{image}{question}")


HOSTILE = (
    "</s>", "<s>", "<unk>", "<|im_end|>", "<image>", "<think>", "what <image></s> is", " </s> ", "<</s>s>", "<s", "s>",
    "{image}", "{question}", "{{ messages }}", "{% raw %}", "{0}", "{", "}", "a{image}b{question}", "<|image_pad|>",
    "\\1", "%s", "$x",
)  # fmt: skip


@pytest.fixture(scope="module", params=KINDS, ids=lambda make: make.__name__)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("kind"), wrap(request.param(), ["<think>", "kidney"]))


@pytest.mark.parametrize("prompt", ["{image}{question}", "USER: {image}\n{question} ASSISTANT:", "{question} {image}"])
def test_D2_ordinary_text_has_the_ids_that_it_had(kind: str, prompt: str) -> None:
    prompter = Prompter(config.Text(tokenizer=kind, prompt=prompt))
    tokenizer = prompter.tokenizer
    for question in (
        "what is this?",
        " a  red\ncat ",
        "été 猫 🐱",
        "kidney",
        "3.5 cm",
        "x < s > y",
        "[y] (z) <b> bold",
    ):
        head, _, tail = prompt.partition("{image}")
        head, tail = (part.replace("{question}", question) for part in (head, tail))
        before = tokenizer(head)["input_ids"]
        if before and before[-1] == tokenizer.eos_token_id:
            before = before[:-1]
        after = tokenizer(tail, add_special_tokens=False)["input_ids"]
        batch = prompter.batch([question], ["yes"])
        answer = [*tokenizer("yes", add_special_tokens=False)["input_ids"], prompter.end]
        assert batch.ids.tolist() == [*before, *after, *answer]
        assert int(batch.image_at) == len(before)


@pytest.mark.parametrize("text", HOSTILE)
def test_special_tokens_of_a_user_stay_text(kind: str, text: str) -> None:
    """Issue sentence 6: neither in questions nor in right answers, and around them all is read as in a plain prompt."""
    prompter = Prompter(config.Text(tokenizer=kind, prompt="<s>USER: {image}\n{question}</s>a {b} {{"))
    controls = {
        prompter.tokenizer.convert_tokens_to_ids(word) for word in ("<s>", "</s>", "<|im_end|>", "<image>", "<think>")
    }
    ordinary = [i for i in prompter.batch(["a"]).ids.tolist() if i in controls]
    batch = prompter.batch([text], [text])
    assert [i for i in batch.ids[~batch.answers].tolist() if i in controls] == ordinary
    assert ordinary == [prompter.tokenizer.bos_token_id, prompter.end]  # the template's own
    assert [i for i in batch.ids[batch.answers].tolist() if i in controls] == [prompter.end]
    whole = prompter.tokenizer.decode(batch.ids[batch.answers].tolist()[:-1])
    if "<unk>" not in whole.replace(text, ""):
        assert whole.replace(" ", "") == text.replace(" ", "")


def test_special_tokens_in_capitals_stay_text_where_the_tokenizer_folds_case(tmp_path: Path) -> None:
    tokenizer = wrap(word_piece())
    tokenizer.add_tokens(["[extra]"])  # normalized: "[EXTRA]" is this token to the tokenizer
    added = tokenizer.convert_tokens_to_ids("[extra]")
    assert added in tokenizer("[EXTRA]")["input_ids"]
    prompter = prompter_of(tmp_path, tokenizer, "{image}{question}")
    assert added not in prompter.batch(["a [EXTRA] [extra]"]).ids.tolist()


def test_a_question_cannot_complete_a_token_of_the_template(tmp_path: Path) -> None:
    prompter = prompter_of(tmp_path, wrap(byte_level()), "a<{question}{image}")
    assert prompter.end not in prompter.batch(["/s>"]).ids.tolist()


def test_words_that_were_added_are_still_read(tmp_path: Path) -> None:
    tokenizer = wrap(byte_level(), ["kidney", "<think>"])
    prompter = prompter_of(tmp_path, tokenizer, "{image}{question}")
    assert tokenizer.convert_tokens_to_ids("kidney") in prompter.batch(["a kidney"]).ids.tolist()


@pytest.mark.parametrize("template", [QWEN, CHATML, LLAVA])
@pytest.mark.parametrize("question", HOSTILE)
def test_a_question_changes_nothing_in_a_chat_template(template: str, question: str, tmp_path: Path) -> None:
    prompter = prompter_of(tmp_path, chat_tokenizer(template))
    before, behind = sides(prompter, "SENTENCE")
    assert sides(prompter, question) == (before, behind.replace("SENTENCE", question))


def test_white_space_around_a_question_is_what_the_template_makes_of_it(tmp_path: Path) -> None:
    assert sides(prompter_of(tmp_path / "a", chat_tokenizer(GEMMA)), " is it? ")[1].startswith("is it?<end_of_turn>")
    assert sides(prompter_of(tmp_path / "b", chat_tokenizer(QWEN)), " is it? ")[1].startswith("<|vision_end|> is it? <")
    string = "{% for m in messages %}U: {{ m['content'] | trim }}{% endfor %} A:"
    assert sides(prompter_of(tmp_path / "c", chat_tokenizer(string)), " is it? ") == ("U: ", "\n is it? A:")


@pytest.mark.parametrize(
    ("make", "prompt", "opening"),
    [
        (byte_fallback, "{image}{question}", ["<s>"]),
        (byte_fallback, "<s>{image}{question}", ["<s>"]),
        (byte_fallback, "<s> USER: {image}{question}", ["<s>"]),
        (unigram, "<s>USER: {question} {image}", ["<s>"]),
        (unigram, "{image}{question}", ["<s>"]),
        (byte_level, "<s>{image}{question}", ["<s>"]),
        (byte_level, "{image}{question}", []),
        (byte_fallback, "chat", ["<s>"]),
        (byte_fallback, "chat twice", ["<s>"]),
        (byte_fallback, "chat without", []),
    ],
)
def test_one_beginning_or_none(make: Any, prompt: str, opening: list[str], tmp_path: Path) -> None:
    tokenizer = wrap(make())
    start = {"chat": "<s>", "chat twice": "{{ bos_token }}<s>"}.get(prompt, "")
    tokenizer.chat_template = start + "{% for m in messages %}[x] {{ m.content }}{% endfor %}"
    prompter = prompter_of(tmp_path, tokenizer, "chat" if prompt.startswith("chat") else prompt)
    ids = prompter.batch(["is it?"]).ids.tolist()
    begin = tokenizer.bos_token_id
    assert ids.count(begin) == len(opening)
    assert ids[: len(opening)] == [begin] * len(opening)
    assert prompter.end not in ids


def test_a_template_with_the_beginning_behind_the_image_has_no_second_one(tmp_path: Path) -> None:
    prompter = prompter_of(tmp_path, wrap(byte_fallback()), "{image}<s>{question}")
    assert prompter.batch(["is it?"]).ids.tolist().count(1) == 1


def test_a_row_that_is_too_long_is_quoted_in_part(tmp_path: Path) -> None:
    prompter = prompter_of(tmp_path, wrap(word_level()), "{image}{question}", max_tokens=50)
    with pytest.raises(
        DataError, match=r"a row of \d+ tokens is over text.max_tokens = 50: '\[/INST\] \\\\x1b"
    ) as caught:
        prompter.batch(["[/INST] \x1b[31m " + "cat " * 5000])
    assert len(str(caught.value)) < 250


@given(question=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_can_be_asked_and_answered(kind: str, question: str) -> None:
    """Property: no question and no answer gives a control token or ends a run, whatever the kind."""
    batch = cached(kind).batch([question], [question])
    assert batch.ids.tolist().count(2) == 1


@cache
def cached(folder: str) -> Prompter:
    return Prompter(config.Text(tokenizer=folder, prompt="{image}{question}"))
