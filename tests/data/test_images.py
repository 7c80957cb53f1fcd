"""Pictures as people bring them: on their side, of one row of pixels, damaged, no pictures at all."""

from __future__ import annotations

import os
import struct
import threading
import time
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Tiny, make_recipe
from image_bytes import chunk, png
from PIL import Image
from PIL.ImageFile import ImageFile
from transformers import AutoImageProcessor

from bitseam.data.features import LiveFeatures, StoredFeatures
from bitseam.data.images import MOST_MEGAPIXELS, open_image
from bitseam.data.inspection import contents_of
from bitseam.data.memory import Memory
from bitseam.errors import DataError
from bitseam.models.vision import pictures
from bitseam.models.vision.half import load_vision_half
from bitseam.models.vision.pictures import middle, quiet, upright_rgb
from bitseam.runs.checkpoint import Identity, build_client, build_server, save_client, save_server
from bitseam.runs.merge import BitseamModel, merge

RED, BLUE, GREEN, WHITE = (255, 0, 0), (0, 0, 255), (0, 255, 0), (255, 255, 255)


def corners(image: Image.Image) -> list[str]:
    """Colours near the four corners, row by row."""
    width, height = image.size
    names = {RED: "red", BLUE: "blue", GREEN: "green", WHITE: "white"}
    spots = [(x, y) for y in (4, height - 5) for x in (4, width - 5)]
    return [min(names.items(), key=lambda n: np.abs(np.subtract(n[0], image.getpixel(s))).sum())[1] for s in spots]


def turned(folder: Path, kind: str, orientation: int, **save: Any) -> Path:
    """80 x 40, red and blue above green and white, told to be turned."""
    image = Image.new("RGB", (80, 40), RED)
    for spot, colour in (((40, 0), BLUE), ((0, 20), GREEN), ((40, 20), WHITE)):
        image.paste(colour, (*spot, spot[0] + 40, spot[1] + 20))
    exif = Image.Exif()
    exif[0x112] = orientation
    path = folder / f"{orientation}.{kind}"
    image.save(path, **({"tiffinfo": {0x112: orientation}} if kind == "tiff" else {"exif": exif}), **save)
    return path


# What the four corners are once upright, by the EXIF standard.
UPRIGHT = {
    1: "red blue green white",
    2: "blue red white green",
    3: "white green blue red",
    4: "green white red blue",
    5: "red green blue white",
    6: "green red white blue",
    7: "white blue green red",
    8: "blue white red green",
    9: "red blue green white",  # no orientation
}


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "avif", "mpo", "tiff", "tiff lzw"])
def test_D3_orientation_is_followed_once(tmp_path: Path, kind: str) -> None:
    kind, _, compression = kind.partition(" ")
    save: dict[str, Any] = {"compression": "tiff_lzw"} if compression else {}
    if kind == "mpo":
        save = {"save_all": True, "append_images": [Image.new("RGB", (80, 40))]}
    for orientation, expected in UPRIGHT.items():
        if compression and orientation > 8:
            continue  # libtiff does not write it
        path = turned(tmp_path, kind, orientation, **save)
        image = open_image(path)
        assert corners(image) == expected.split(), orientation
        assert image.size == ((40, 80) if 5 <= orientation <= 8 else (80, 40))
        assert corners(upright_rgb(image)) == expected.split()
        with Image.open(path) as opened:
            assert corners(upright_rgb(opened)) == expected.split()  # as the merged model gets it
            assert corners(upright_rgb(opened)) == expected.split()


def test_D3_orientation_in_xmp_after_the_pixels_and_in_broken_exif(tmp_path: Path) -> None:
    image = Image.open(turned(tmp_path, "png", 1))
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    image.save(tmp_path / "xmp.jpg", xmp=xmp)
    image.info.clear()
    image.save(tmp_path / "broken.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f" + bytes(9))
    exif = struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, 0x112, 3, 1, 6, 0, 0)
    image.save(tmp_path / "plain.png")
    plain = (tmp_path / "plain.png").read_bytes()
    (tmp_path / "late.png").write_bytes(plain[:-12] + chunk(b"eXIf", exif) + plain[-12:])
    assert corners(open_image(tmp_path / "xmp.jpg")) == UPRIGHT[6].split()
    assert corners(open_image(tmp_path / "late.png")) == UPRIGHT[6].split()
    assert corners(open_image(tmp_path / "broken.jpg")) == UPRIGHT[1].split()


def test_D3_in_every_way_in(tiny: Tiny, tmp_path: Path) -> None:
    recipe = make_recipe(tiny)
    half = load_vision_half(recipe.client, 32)
    sideways = turned(tmp_path, "png", 6)
    upright = tmp_path / "upright.png"
    open_image(sideways).save(upright)
    images = [sideways, upright]
    with Image.open(sideways) as one, Image.open(upright) as other:
        assert torch.equal(*half.pixels([one, other]))
    assert torch.equal(*LiveFeatures(half).of(images))
    contents = contents_of(images, Memory(tmp_path / "known"))
    assert torch.equal(*StoredFeatures(half, contents, tmp_path / "kept").of(images))

    client, server = build_client(recipe, str), build_server(recipe, str)
    client.image_quantizer.calibrate(torch.randn(9, 32))
    folders = [
        save(part, recipe, Identity("ab", 3), tmp_path / name)
        for save, part, name in ((save_client, client, "client"), (save_server, server, "server"))
    ]
    merge(*folders, tmp_path / "merged", str)
    whole, seen = BitseamModel.from_pretrained(tmp_path / "merged"), []
    whole.client.vision.tower.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for path in images:
        with Image.open(path) as image:
            whole.answer(image, "what is this ?", 1)
    assert torch.equal(*seen)


# A processor that resizes to a square, and one that brings the shortest edge to a size and takes the middle.
SQUARE, MIDDLE = {"do_center_crop": False, "size": {"height": 56, "width": 56}}, {}


@pytest.mark.parametrize("framing", [SQUARE, MIDDLE], ids=["square", "middle"])
@pytest.mark.parametrize("size", [(8000, 1), (1, 8000), (60_000, 1), (3, 30_000)])
def test_D16_extreme_aspect_ratios_take_no_more_than_others(
    tiny: Tiny, tmp_path: Path, size: tuple[int, int], framing: dict[str, Any]
) -> None:
    half = load_vision_half(make_recipe(tiny).client, 32)
    half.framing = framing
    Image.new("L", size, 77).save(tmp_path / "x.png")
    start = time.perf_counter()
    pixels = half.pixels([open_image(tmp_path / "x.png")])
    assert time.perf_counter() - start < 1
    assert pixels.shape == (1, 3, 56, 56)
    assert pixels[0, 0].std() < 1e-4


@pytest.mark.parametrize("size", [(901, 60), (60, 902), (1000, 33), (700, 7)])
def test_D16_what_is_cut_off_was_not_looked_at(tiny: Tiny, size: tuple[int, int]) -> None:
    processor = AutoImageProcessor.from_pretrained(tiny.vision)
    x = np.linspace(0, 40, max(size))[None].repeat(min(size), 0)
    waves = np.uint8(127 + 100 * np.sin(x))
    image = Image.fromarray(waves if size[0] > size[1] else waves.T).convert("RGB")
    cut = middle(image, processor, {})
    assert cut.width * cut.height < image.width * image.height
    whole, part = (processor(images=one, return_tensors="pt")["pixel_values"] for one in (image, cut))
    pixel = (whole[..., 1:] - whole[..., :-1]).abs().max(), (whole[..., 1:, :] - whole[..., :-1, :]).abs().max()
    assert (whole - part).abs().max() < max(pixel) + 0.02
    assert middle(image, processor, {"size": {"height": 56, "width": 56}}) is image
    assert middle(photograph := Image.new("RGB", (80, 60)), processor, {}) is photograph


def test_D16_large_pictures_are_reduced_and_larger_ones_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8).repeat(30, 0).repeat(30, 1)
    large = Image.fromarray(pixels)
    for kind in ("png", "jpg"):
        large.save(tmp_path / f"x.{kind}")
    monkeypatch.setattr(pictures, "MOST_PIXELS", 330 * 270 // 4)
    monkeypatch.setattr(pictures, "_BLOCK", 100)
    for kind in ("png", "jpg"):
        image = open_image(tmp_path / f"x.{kind}")
        assert image.size == (165, 135)
        assert upright_rgb(image) is image
        np.testing.assert_allclose(np.asarray(image)[7::15, 7::15], pixels[15::30, 15::30], atol=12)
    monkeypatch.setitem(MOST_MEGAPIXELS, "PNG", 0.08)
    with pytest.raises(DataError, match=r"x.png: not a readable image: 330 x 270 pixels where such a PNG may have"):
        open_image(tmp_path / "x.png")


def test_D16_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png(8, 0, [b""] * 30_000, 30_000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match=r"bomb.png: not a readable image: .*9000000"):
            open_image(tmp_path / "bomb.png")


RUNS = (
    b"BM" + struct.pack("<IIIIiiHHIIiiII", 0, 0, 62, 40, 2**24, 6, 1, 8, 1, 0, 0, 0, 2, 2) + bytes(8) + b"\1\0\0\0" * 6
)
SLOW = {"PPM": b"P5 9000 1000 4095\n" + bytes(18_000_000), "BMP": RUNS}


@pytest.mark.parametrize("kind", SLOW)
def test_D16_slow_decoders_have_less_to_do(tmp_path: Path, kind: str) -> None:
    (tmp_path / "x").write_bytes(SLOW[kind])
    start = time.process_time()
    with pytest.raises(DataError, match=rf"pixels where such a {kind} may have 8 million"):
        open_image(tmp_path / "x")
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    "raised", [RuntimeError, NotImplementedError, struct.error, MemoryError, IndexError, zlib.error]
)
def test_D17_whatever_a_decoder_raises_is_the_named_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: type[Exception]
) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "x.png")

    def fail(_: ImageFile) -> None:
        warnings.warn("corrupt", stacklevel=1)
        raise raised("of\nseveral lines")

    monkeypatch.setattr(ImageFile, "load", fail)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match=r"x.png: not a readable image: of several lines$"):
            open_image(tmp_path / "x.png")


def test_D17_damaged_files_and_formats_that_are_not_tried(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    image = Image.effect_noise((64, 64), 50).convert("RGB")
    image.save(tmp_path / "x.avif")
    (tmp_path / "x.avif").write_bytes((tmp_path / "x.avif").read_bytes().replace(b"pitm", b"xxxx"))
    image.save(tmp_path / "x.dds")
    image.save(tmp_path / "x.eps")  # Pillow would run Ghostscript
    (tmp_path / "eps.png").write_bytes((tmp_path / "x.eps").read_bytes())
    for name in ("x.avif", "x.dds", "x.eps", "eps.png"):
        formats = "" if name == "x.avif" else " of the formats PNG, JPEG"
        with pytest.raises(DataError, match=rf"{name}: not a readable image{formats}") as caught:
            open_image(tmp_path / name)
        assert "\n" not in str(caught.value)
    for kind in ("png", "jpg", "webp", "tiff", "gif", "bmp", "avif", "jp2", "ppm"):
        image.save(tmp_path / f"whole.{kind}")
        assert open_image(tmp_path / f"whole.{kind}").size == (64, 64)
        raw = (tmp_path / f"whole.{kind}").read_bytes()
        (tmp_path / f"cut.{kind}").write_bytes(raw[: len(raw) // 2])
        with pytest.raises(DataError, match=rf"cut.{kind}: not a readable image"):
            open_image(tmp_path / f"cut.{kind}")
    image.save(tmp_path / "x.tiff", compression="packbits")
    raw = bytearray((tmp_path / "x.tiff").read_bytes())
    raw[8:2000] = bytes(1992)
    (tmp_path / "x.tiff").write_bytes(raw)
    with pytest.raises(DataError, match=r"x.tiff: not a readable image"):
        open_image(tmp_path / "x.tiff")
    assert capfd.readouterr() == ("", "")  # libtiff's own words


def test_D17_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    causes = {"": "folder", "pipe.png": "not a file", "empty.png": "0 bytes", "gone.png": "No such file", "\0": "null"}
    causes |= {"x" * 5000: "too long", "a.png/b.png": ""}
    for name, cause in causes.items():
        with pytest.raises(DataError, match=rf"not a readable image: .*{cause}") as caught:
            open_image(tmp_path / name)
        assert len(str(caught.value)) < 700
    with pytest.raises(DataError, match="not a file"):
        open_image(Path("/dev/zero"))


def test_D17_warnings_stay_off_in_threads_and_come_back() -> None:
    before = list(warnings.filters)
    one, other = threading.Event(), threading.Event()

    def run() -> None:
        with quiet():
            one.set()
            other.wait(5)

    thread = threading.Thread(target=run)
    thread.start()
    one.wait(5)
    with quiet():
        other.set()
        thread.join()
        warnings.warn("not shown", stacklevel=1)
    assert list(warnings.filters) == before
