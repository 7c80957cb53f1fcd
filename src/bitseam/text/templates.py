"""Prompt templates: what stands before the image and behind it, and where the question goes.

A template is rendered once, with a secret word for the question. What others write is put in its place afterwards, so
that nothing in it is taken for the image's place or for a part of the template.
"""

from __future__ import annotations

import re
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from string import ascii_lowercase
from typing import Any

from bitseam.errors import ModelError, first_sentence, printable

# Of the tokens that a picture brings into a rendering, the one whose place is the image's: not those around it.
_MARK = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
_AROUND = re.compile(r"start|begin|end|boi|eoi|/", re.IGNORECASE)
_IMAGES = re.compile(r"image|img|pad", re.IGNORECASE)
_LONGEST = 2**16  # characters of a rendering
# Some templates write the date, and a run that goes on tomorrow needs the same prompts: to them it is always one day.
_DAY = datetime(2024, 7, 26)
_DATES = "".join(f" | replace('%{part}', '{_DAY.strftime('%' + part)}')" for part in "aAbBdeHIjmMpSyY")
_ONE_DAY = f"{{% macro strftime_now(form) -%}}{{{{ form{_DATES} }}}}{{%- endmacro %}}\n"
_OWN = "give text.prompt a template of your own, with {image} and {question}"


@dataclass(frozen=True)
class Template:
    """head, tail: our text before and behind the image; the one where the question stands is cut in two there.

    placeholder: the token that stood for the image, "" where none did. trim: what the template does to white space
    around a question.
    """

    head: tuple[str, ...]
    tail: tuple[str, ...]
    placeholder: str = ""
    trim: Callable[[str], str] = str

    @property
    def sides(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return self.head, self.tail


def plain_template(prompt: str) -> Template:
    """A recipe's own template, with {image} and {question} once each; other braces are text."""
    head, _, tail = prompt.partition("{image}")
    return Template(tuple(head.split("{question}")), tuple(tail.split("{question}")))


def chat_template(tokenizer: Any, what: str) -> Template:
    """The tokenizer's own template for one turn of a user, an image and a question about it.

    Templates of vision-language models take a list of parts and have a placeholder, whose place is the image's: the
    placeholder goes, and what stands around it stays. Others take a string; there the image comes before the question,
    on a line of its own. Raises ModelError that begins with `what` where neither way gives each once.
    """
    source = tokenizer.chat_template
    if isinstance(source, dict):
        if "default" not in source:
            raise ModelError(f"{what} has chat templates {printable(', '.join(source))}, and none 'default': {_OWN}")
        source = source["default"]
    if not source:
        raise ModelError(f"{what} has no chat template, and text.prompt is 'chat': {_OWN}")
    faults = []
    for form, way in (("parts", _of_parts), ("a string", _of_string)):
        try:
            return way(_Rendering(tokenizer, source))
        except _UnfitError as fault:
            faults.append(f"with content as {form}, {fault}")
    raise ModelError(f"{what}: its chat template makes no prompt of image and question ({'; '.join(faults)}): {_OWN}")


class _UnfitError(Exception):
    """What is wrong with a rendering."""


class _Rendering:
    """Renders a template with words that no template has: for the question, for the image, for what must not appear."""

    def __init__(self, tokenizer: Any, source: str) -> None:
        self.tokenizer, self._source = tokenizer, source
        self.question, self.image, self.hidden = (
            "".join(secrets.choice(ascii_lowercase) for _ in range(24)) for _ in range(3)
        )

    def __call__(self, content: Any) -> str:
        turn = [{"role": "user", "content": content}]
        try:
            text: str = self.tokenizer.apply_chat_template(
                turn, chat_template=_ONE_DAY + self._source, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template is a program, and raises what it likes
            raise _UnfitError(f"it raises {first_sentence(error, 200, named=True)}") from error
        if len(text) > _LONGEST:
            raise _UnfitError(f"it writes {len(text):,} characters about one question")
        if self.hidden in text:
            raise _UnfitError("it shows the list itself")
        _require_once("the question", text.count(self.question))
        return text

    def template(self, plain: str, padded: str, image: str, placeholder: str = "") -> Template:
        """From renderings of the question and of the question with a space on either side. image: what stands there."""
        for trim in (str, str.strip, str.lstrip, str.rstrip):
            if padded == plain.replace(self.question, trim(f" {self.question} ")):
                head, _, tail = plain.partition(image)
                before, behind = tuple(head.split(self.question)), tuple(tail.split(self.question))
                return Template(before, behind, placeholder, trim)
        raise _UnfitError("it changes with the question's words")


def _of_parts(render: _Rendering) -> Template:
    def parts(question: str, image: bool = True) -> list[dict[str, str]]:
        words = {"type": "text", "text": question, render.hidden: render.hidden}
        return [{"type": "image", render.hidden: render.hidden}, words] if image else [words]

    text, without = render(parts(render.question)), render(parts(render.question, image=False))
    brought = list(Counter(_MARK.findall(text)) - Counter(_MARK.findall(without)))
    found = [mark for mark in brought if not (_AROUND.search(mark) or f"</{mark[1:]}" in brought)] or brought
    if (named := str(getattr(render.tokenizer, "image_token", ""))) in brought:
        found = [named]
    if len(found) > 1:
        found = [mark for mark in found if _IMAGES.search(mark)]
    if brought and len(found) != 1:
        raise _UnfitError(f"which of {printable(' '.join(brought))} is the image's place cannot be told")
    run = re.findall(f"(?:{re.escape(found[0])})+", text) if found else []
    _require_once("the image's place", len(run))
    return render.template(text, render(parts(f" {render.question} ")), run[0], found[0])


def _of_string(render: _Rendering) -> Template:
    text, padded = (render(f"{render.image}\n{question}") for question in (render.question, f" {render.question} "))
    _require_once("the image's place", text.count(render.image))
    return render.template(text, padded, render.image)


def _require_once(what: str, count: int) -> None:
    if count != 1:
        raise _UnfitError(f"{what} is missing" if not count else f"{what} is there {count} times")
