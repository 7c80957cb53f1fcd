"""Pictures of more than 8 bits, and what is transparent."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from image_bytes import chunk, png
from PIL import Image

from bitseam.data.images import open_image
from bitseam.errors import DataError
from bitseam.models.vision.pictures import upright_rgb

RAMP = np.tile(np.linspace(0, 1, 256), (4, 1))
DEEP = {
    "16 bits": ("png", (RAMP * 65535).astype(np.uint16)),
    "12 bits in 16": ("png", (RAMP * 4095).astype(np.uint16)),
    "a CT with an offset": ("png", (RAMP * 2000 + 31000).astype(np.uint16)),
    "12 bits, TIFF": ("tiff", (RAMP * 4095).astype(np.uint16)),
    "big-endian": ("tiff", (RAMP * 65535).astype(">u2")),
    "signed": ("tiff", (RAMP * 4095 - 1024).astype(np.int32)),
    "floats to 1": ("tiff", RAMP.astype(np.float32)),
    "large floats": ("tiff", ((RAMP - 0.5) * 6e38).astype(np.float32)),
    "PGM": ("pgm", (RAMP * 65535).astype(np.uint16)),
    "JPEG 2000": ("jp2", (RAMP * 65535).astype(np.uint16)),
}


@pytest.mark.parametrize("case", DEEP)
def test_D4_the_full_range_of_deep_grey_is_kept(tmp_path: Path, case: str) -> None:
    kind, values = DEEP[case]
    image = Image.fromarray(values)
    if kind == "pgm":
        (tmp_path / "x.pgm").write_bytes(b"P5 256 4 65535\n" + values.astype(">u2").tobytes())
    else:
        image.save(tmp_path / f"x.{kind}")
    levels = np.asarray(open_image(tmp_path / f"x.{kind}"))
    assert levels.shape == (4, 256, 3)
    np.testing.assert_allclose(levels[0, :, 0], np.arange(256), atol=1)
    assert len(np.unique(levels)) > 250
    assert np.array_equal(np.asarray(upright_rgb(image)), levels)


@pytest.mark.parametrize("mode", ["I", "I;16", "I;16B", "F"])
def test_D4_modes_and_wide_containers_of_8_bits(mode: str) -> None:
    grey = Image.fromarray(np.arange(20, 220, dtype=np.uint8)[None])
    deep = grey.convert("I;16").convert("I").convert(mode) if mode != "F" else grey.convert("F")
    expected = np.asarray(grey) if mode != "F" else np.rint(np.arange(200) * 255 / 199)[None]
    np.testing.assert_allclose(np.asarray(upright_rgb(deep))[..., 0], expected, atol=1)


def test_D4_numbers_that_are_none_flat_pictures_and_what_pillow_leaves(tmp_path: Path) -> None:
    odd = np.array([[np.nan, -np.inf, np.inf, 1, 3]], np.float32)
    assert np.asarray(upright_rgb(Image.fromarray(odd)))[0, :, 0].tolist() == [0, 0, 255, 0, 255]
    with pytest.raises(DataError, match="no number in it is finite"):
        upright_rgb(Image.fromarray(odd[:, :3]))
    flat = [np.full((1, 1), value, kind) for value, kind in ((0, np.uint16), (5000, np.uint16), (0.5, np.float32))]
    assert [upright_rgb(Image.fromarray(x)).getpixel((0, 0))[0] for x in flat] == [0, 255, 255]

    ramp = np.array([[0, 2**31 - 1, 2**32 - 1]], np.uint32)  # Pillow gives -1 for the last
    Image.fromarray(ramp.view(np.int32)).save(tmp_path / "u.tiff", tiffinfo={339: 1})
    raw = (tmp_path / "u.tiff").read_bytes().replace(struct.pack("<HHIHH", 339, 3, 1, 2, 0), unsigned := sample(1))
    (tmp_path / "u.tiff").write_bytes(raw)
    assert unsigned in raw
    assert np.asarray(open_image(tmp_path / "u.tiff"))[0, :, 0].tolist() == [0, 127, 255]

    Image.fromarray(np.array([[0, 1000, 4000]], np.uint16)).save(tmp_path / "w.tiff")
    raw = (tmp_path / "w.tiff").read_bytes()
    (tmp_path / "w.tiff").write_bytes(raw.replace(struct.pack("<HHIHH", 262, 3, 1, 1, 0), sample(0, 262)))
    assert np.asarray(open_image(tmp_path / "w.tiff"))[0, :, 0].tolist() == [255, 191, 0]  # white is zero


def sample(value: int, tag: int = 339) -> bytes:
    return struct.pack("<HHIHH", tag, 3, 1, value, 0)


def logo(mode: str) -> Image.Image:
    """Black at full opacity, black at half, and a hidden colour at none."""
    image = Image.new("RGBA", (3, 1))
    for x, pixel in enumerate([(0, 0, 0, 255), (0, 0, 0, 128), (200, 200, 200, 0)]):
        image.putpixel((x, 0), pixel)
    if mode in ("LA", "La"):
        return image.convert("LA").convert(mode)
    if mode == "PA":
        return palette(image)
    return image.convert(mode)


def palette(image: Image.Image) -> Image.Image:
    out = Image.new("PA", image.size)
    out.putpalette([0, 0, 0, 200, 200, 200])
    for x, pixel in enumerate([(0, 255), (0, 128), (1, 0)]):
        out.putpixel((x, 0), pixel)
    return out


@pytest.mark.parametrize("mode", ["RGBA", "LA", "La", "RGBa", "PA"])
def test_D5_what_is_transparent_lies_on_white(mode: str) -> None:
    assert np.asarray(upright_rgb(logo(mode)))[0].tolist() == [[0] * 3, [127] * 3, [255] * 3]


@pytest.mark.parametrize("kind", ["png", "webp", "tiff", "avif", "gif"])
def test_D5_files_with_alpha(tmp_path: Path, kind: str) -> None:
    image = Image.new("RGBA", (40, 40), (200, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 20, 40))
    image.save(tmp_path / f"x.{kind}", **({"lossless": True} if kind == "webp" else {}))
    seen = np.asarray(open_image(tmp_path / f"x.{kind}")).astype(int)
    assert seen[:, :16].max() < 9
    assert seen[:, 24:].min() > 246


def test_D5_transparent_colours_of_pngs(tmp_path: Path) -> None:
    key = struct.pack(">H", 1)
    palette = chunk(b"PLTE", bytes([0, 0, 0, 9, 9, 9]))
    cases = {
        "1 bit": (png(1, 0, [b"\x40"], 2, chunk(b"tRNS", struct.pack(">H", 0))), [255, 255]),
        "2 bits": (png(2, 0, [b"\x18"], 3, chunk(b"tRNS", key)), [0, 255, 170]),
        "4 bits": (png(4, 0, [b"\x01"], 2, chunk(b"tRNS", key)), [0, 255]),
        "8 bits": (png(8, 0, [b"\x00\x01\x02"], 3, chunk(b"tRNS", key)), [0, 255, 2]),
        "16 bits": (png(16, 0, [struct.pack(">HHH", 0, 1, 900)], 3, chunk(b"tRNS", key)), [0, 255, 255]),
        "colour": (png(8, 2, [bytes([7, 7, 7, 1, 1, 1])], 2, chunk(b"tRNS", key * 3)), [7, 255]),
        "16-bit colour": (
            png(16, 2, [struct.pack(">6H", *[0x1234] * 3, *[0x3434] * 3)], 2, chunk(b"tRNS", b"\x12\x34" * 3)),
            [255, 0x34],
        ),
        "palette": (png(8, 3, [b"\x00\x01"], 2, palette, chunk(b"tRNS", bytes([255, 0]))), [0, 255]),
    }
    for name, (raw, expected) in cases.items():
        (tmp_path / "x.png").write_bytes(raw)
        assert np.asarray(open_image(tmp_path / "x.png"))[0, :, 0].tolist() == expected, name
        with Image.open(tmp_path / "x.png") as image:  # loaded before it comes here, as far as Pillow still tells
            assert np.asarray(upright_rgb(image))[0, :, 0].tolist() == expected, name


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_D5_pictures_without_alpha_are_what_they_were(mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 4100, 3), dtype=np.uint8)  # three blocks
    image = Image.fromarray(pixels).convert(mode)
    assert np.array_equal(np.asarray(upright_rgb(image)), np.asarray(image.convert("RGB")))
    assert np.array_equal(np.asarray(upright_rgb(Image.fromarray(pixels).convert("RGBA"))), pixels)


def test_D5_lab_is_colour() -> None:
    lab = Image.merge("LAB", [Image.new("L", (1, 1), value) for value in (138, 209, 198)])
    np.testing.assert_allclose(upright_rgb(lab).getpixel((0, 0)), (255, 0, 0), atol=6)  # L 54, a 81, b 70
