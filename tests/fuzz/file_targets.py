"""Files that are fuzzed: images, rows, recipes and tokenizer folders, each through all that reads it."""

from __future__ import annotations

import io
import os
import struct
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from string import printable
from typing import Any

import numpy as np
from fuzz_mutation import Mutation, mutate_bytes
from fuzz_targets import Target
from image_mutation import mutate_boxes, mutate_header, mutate_jpeg, mutate_png, mutate_riff, mutate_tiff
from PIL import Image
from text_file_mutation import mutate_json, mutate_json_lines, mutate_toml
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import BitImageProcessorPil, PreTrainedTokenizerFast

sys.path.append(str(Path(__file__).parent.parent / "data"))
from image_bytes import chunk, png

from bitseam.config import Text, load_recipe
from bitseam.data.images import open_image
from bitseam.data.rows import read_rows
from bitseam.errors import ConfigError, DataError, ModelError
from bitseam.models.vision.pictures import MOST_PIXELS, middle, upright_rgb
from bitseam.text.prompts import Prompter

ROOT = Path(__file__).parent.parent.parent


def file_targets(folder: Path) -> list[Target]:
    """All of them; files are written below `folder`."""
    seeds: dict[str, list[tuple[int, bytes]]] = {}
    for kind, raw in _images():
        seeds.setdefault(kind, []).append((0, raw))
    images = [
        Target(kind, 1, seeds[kind], _image_run(folder), (DataError,), mutations, weight)
        for kind, mutations, weight in _KINDS
    ]
    return [_told(target) for target in [*images, _rows(folder), _recipes(folder), _tokenizers(folder)]]


def _told(target: Target) -> Target:
    """Its errors are short and do not steer a terminal; those of rows may name a row a line, others are one line."""

    def run(variant: int, raw: bytes) -> None:
        try:
            target.run(variant, raw)
        except target.documented as error:
            said = str(error).replace("\n", " " if target.name == "rows" else "\n")
            if not said.isprintable() or len(said) > 20_000:
                raise ValueError(f"not a short line: {said[:1000]!r}") from error
            raise

    return replace(target, run=run)


# Kinds of images, how they are mutated, and how many thousands of 200 each gets.
_KINDS: list[tuple[str, tuple[Mutation, ...], int]] = [
    ("png", (mutate_png, mutate_png, mutate_header, mutate_bytes), 30),
    ("jpeg", (mutate_jpeg, mutate_jpeg, mutate_header, mutate_bytes), 25),
    ("webp", (mutate_riff, mutate_header, mutate_bytes), 20),
    ("tiff", (mutate_tiff, mutate_tiff, mutate_header, mutate_bytes), 30),
    ("gif", (mutate_header, mutate_bytes), 14),
    ("bmp", (mutate_header, mutate_bytes), 14),
    ("avif", (mutate_boxes, mutate_boxes, mutate_header, mutate_bytes), 14),
    ("jp2", (mutate_boxes, mutate_header, mutate_bytes), 6),
    ("ppm", (mutate_header, mutate_bytes), 4),
]


def _images() -> Iterator[tuple[str, bytes]]:
    """Small ones of many forms: kind and bytes."""
    grey = Image.fromarray((np.add.outer(np.arange(24), np.arange(32)) * 4).astype(np.uint8))
    rgb = Image.merge("RGB", [grey, grey.transpose(Image.Transpose.ROTATE_180), Image.new("L", grey.size, 90)])
    alpha = rgb.convert("RGBA")
    alpha.putalpha(grey)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 250)
    exif = Image.Exif()
    exif[0x112], exif[0x10F] = 6, "maker"
    for kind, image, options in (
        *(("png", one, {}) for one in (rgb, alpha, deep, grey.convert("1"), grey.convert("LA"))),
        ("png", rgb.convert("P"), {"transparency": 3, "bits": 4}),
        ("png", rgb, {"exif": exif, "icc_profile": bytes(200)}),
        ("png", rgb, {"save_all": True, "append_images": [alpha.convert("RGB")]}),
        *(("jpeg", one, {}) for one in (rgb, grey, rgb.convert("CMYK"))),
        ("jpeg", rgb, {"progressive": True, "exif": exif, "xmp": b'<a tiff:Orientation="6"/>'}),
        ("jpeg", rgb, {"restart_marker_rows": 1, "optimize": True}),
        ("mpo", rgb, {"save_all": True, "append_images": [grey.convert("RGB")], "exif": exif}),
        *(("webp", one, {"exif": exif}) for one in (rgb, alpha)),
        ("webp", alpha, {"lossless": True, "save_all": True, "append_images": [rgb.convert("RGBA")]}),
        *(("tiff", one, {}) for one in (rgb, alpha, deep, grey.convert("F"), grey.convert("I"), rgb.convert("LAB"))),
        *(("tiff", rgb, {"compression": c}) for c in ("tiff_lzw", "jpeg", "packbits", "tiff_adobe_deflate", "lzma")),
        *(("tiff", grey.convert("1"), {"compression": c}) for c in ("group3", "group4", "tiff_ccitt")),
        ("tiff", deep, {"compression": "tiff_lzw", "tiffinfo": {317: 2, 278: 5, 274: 6}}),
        ("tiff", rgb, {"big_tiff": True}),
        ("tiff", rgb, {"save_all": True, "append_images": [grey.copy()]}),
        *(("gif", one, {}) for one in (grey, rgb, alpha)),
        ("gif", rgb, {"save_all": True, "append_images": [grey.convert("RGB")], "interlace": 1}),
        *(("bmp", one, {}) for one in (rgb, grey, grey.convert("1"), alpha, rgb.convert("P"))),
        *(("avif", one, {"exif": exif, "speed": 10}) for one in (rgb, alpha)),
        ("avif", rgb, {"save_all": True, "append_images": [grey.convert("RGB")], "speed": 10, "subsampling": "4:4:4"}),
        *(("jp2", one, {}) for one in (rgb, alpha, deep, grey)),
        ("jp2", rgb, {"tile_size": (16, 16), "no_jp2": True}),
        *(("ppm", one, {}) for one in (rgb, grey, grey.convert("1"), deep)),
    ):
        file = io.BytesIO()
        image.copy().save(file, "JPEG2000" if kind == "jp2" else kind, **options)
        yield kind.replace("mpo", "jpeg"), file.getvalue()
    yield "png", png(2, 0, [bytes(range(8))] * 9, 32, chunk(b"tRNS", b"\0\1"))
    yield "png", png(16, 2, [bytes(range(24))] * 9, 4, chunk(b"tRNS", b"\0\1" * 3), chunk(b"sBIT", b"\x0c" * 3))
    yield "bmp", b"BM" + struct.pack("<IIIIiiHHIIiiII", 94, 0, 62, 40, 8, 4, 1, 8, 1, 32, 0, 0, 2, 2) + bytes(40)
    yield "ppm", b"P3 2 2 255 " + b"7 " * 12
    yield "ppm", b"Pf 2 2 -1.0\n" + np.array([0, np.nan, -3, 1e30], np.float32).tobytes()


def _image_run(folder: Path) -> Any:
    processor = BitImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    path = folder / "x"

    def run(_: int, raw: bytes) -> None:
        path.write_bytes(raw)
        image = open_image(path)
        assert image.mode == "RGB"
        assert 0 < image.width * image.height <= MOST_PIXELS
        assert upright_rgb(image) is image
        pixels = processor(images=[middle(image, processor, {})], return_tensors="np")["pixel_values"]
        assert pixels.shape == (1, 3, 16, 16)
        assert np.isfinite(pixels).all()

    return run


def _rows(folder: Path) -> Target:
    Image.new("RGB", (3, 3)).save(folder / "0.png")

    def run(_: int, raw: bytes) -> None:
        (folder / "rows.jsonl").write_bytes(raw)
        for row in read_rows(folder / "rows.jsonl"):
            for text in (row.question, row.answer, row.task):
                text.encode()
            os.fspath(row.image)

    row = b'{"image": "0.png", "question": "is this a cat ?", "answer": "yes", "task": "cats"}'
    seeds = [(0, b"\n".join([row] * n) + b"\n") for n in (1, 3)]
    return Target("rows", 1, seeds, run, (DataError,), (mutate_json_lines, mutate_json_lines, mutate_bytes), 20, False)


def _recipes(folder: Path) -> Target:
    def run(_: int, raw: bytes) -> None:
        (folder / "recipe.toml").write_bytes(raw)
        load_recipe(folder / "recipe.toml").folder.exists()

    seeds = [(0, path.read_bytes()) for path in sorted((ROOT / "recipes").glob("*.toml"))]
    return Target("recipes", 1, seeds, run, (ConfigError,), (mutate_toml, mutate_toml, mutate_bytes), 19, False)


TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def _tokenizers(folder: Path) -> Target:
    """A folder with one file changed; the variant says which."""
    homes = []
    for name, splits in (("bytes", pre_tokenizers.ByteLevel()), ("words", pre_tokenizers.Metaspace())):
        pieces, special = Tokenizer(models.BPE(unk_token="<unk>")), ["<unk>", "<s>", "</s>", "<image>"]
        pieces.pre_tokenizer = splits
        if name == "words":
            pieces.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
        trainer = trainers.BpeTrainer(
            vocab_size=150, special_tokens=special, initial_alphabet=list(printable), show_progress=False
        )
        pieces.train_from_iterator(["is this a cat ? yes no"], trainer)
        fast = PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
        fast.chat_template = TEMPLATE
        fast.save_pretrained(folder / name)
        homes.append(folder / name)
    files = [
        (home, name) for home in homes for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    ]
    wholes = [(home / name).read_bytes() for home, name in files]

    def run(variant: int, raw: bytes) -> None:
        home = files[variant][0]
        for number, (other, name) in enumerate(files):  # a process that ended may have left another changed
            if other == home:
                (home / name).write_bytes(raw if number == variant else wholes[number])
        prompter = Prompter(Text(str(home)))
        batch = prompter.batch(["is this a cat ?", "a"], ["yes", "no"])
        assert batch.lengths.sum() == len(batch.ids)
        assert 0 <= batch.ids.min() <= batch.ids.max() < prompter.vocabulary
        prompter.decode(batch.ids.tolist())
        assert len(prompter.fingerprint) == 16

    seeds = list(enumerate(wholes))
    refusals = (DataError, ConfigError, ModelError)
    return Target("tokenizers", len(files), seeds, run, refusals, (_mutate_tokenizer,), 4, False)


def _mutate_tokenizer(raw: bytes, rng: Random, variant: int) -> bytes:
    if variant % 3 == 2:
        at = rng.randrange(len(raw) + 1)
        return raw[:at] + rng.choice(_JINJA) + raw[at:] if rng.random() < 0.5 else mutate_bytes(raw, rng)
    return mutate_json(raw, rng) if rng.random() < 0.8 else mutate_bytes(raw, rng)


_JINJA = tuple(
    text.encode()
    for text in (
        *("{{", "%}", "{% raw %}", "{{ 1/0 }}", "{{ messages[9].x.y }}", "{{ raise_exception('\\n no') }}", "<image>"),
        *("{{ ''.__class__.__mro__ }}", "{% for i in range(99999) %}{{ i }}{% endfor %}"),
        *(
            "{% include 'x' %}",
            "{{ messages[0]['content'] | upper }}",
            "{{ messages | tojson }}",
            "{% set messages = [] %}",
        ),
    )
)
