"""What a tower sees of a picture: upright, 8 bits of red, green and blue, on white, and not too large.

Every picture goes through `upright_rgb`, whichever way it comes in; a second time changes nothing. What it does depends
on that picture alone:

- Turned as its EXIF or XMP orientation says. Broken EXIF counts as none.
- Grey of more than 8 bits and floats: the picture's least value becomes black and its greatest white, since containers
  do not tell how many of their bits are used: an X-ray of 12 bits in a PNG of 16 would be almost black. Integers that
  all fit 8 bits stay as they are. Infinities are black or white, and NaN is black.
- What is transparent lies on white.
- More than MOST_PIXELS: reduced by the smallest whole number that brings it below.
"""

from __future__ import annotations

import ctypes
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageFile

from bitseam.errors import DataError, first_sentence

MOST_PIXELS = 2**25  # of a picture that goes on; any tower sees far fewer
_BLOCK = 2048  # pixels; conversions go block by block, so that they hold little beside the picture
_MOST_ASPECT = 8  # of what is resized where only the middle square is looked at

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pillow brings pixels of these PNGs to 8 bits, but not the transparent colour that they are compared with.
_KEY_SCALE = {"L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}

try:  # libtiff writes of damaged files to the terminal itself, a line for each row of pixels
    _imaging = ctypes.CDLL(Image.core.__file__)  # its dependencies are searched too
    _imaging.TIFFSetErrorHandler(None)
    _imaging.TIFFSetWarningHandler(None)
except (AttributeError, OSError):  # a Pillow that is built otherwise
    pass

_lock = threading.Lock()
_silent = 0
_filters: warnings.catch_warnings | None = None


@contextmanager
def quiet() -> Iterator[None]:
    """Pillow's warnings are not shown; what matters of them is an error here. For several threads at once, for which
    `warnings.catch_warnings` is not made."""
    global _silent, _filters
    with _lock:
        if not _silent:
            _filters = warnings.catch_warnings()
            _filters.__enter__()
            warnings.simplefilter("ignore")
        _silent += 1
    try:
        yield
    finally:
        with _lock:
            _silent -= 1
            if not _silent and _filters is not None:
                _filters.__exit__(None, None, None)


def upright_rgb(image: Image.Image) -> Image.Image:
    """The picture as a tower sees it, mode RGB, without metadata; see above. `image` itself may be returned.

    Raises DataError where it cannot be decoded or converted, whatever its decoder raises.
    """
    try:
        with quiet():
            return _upright_rgb(image)
    except Exception as error:  # decoders raise anything
        raise DataError(f"not a readable image: {first_sentence(error)}") from error


def reduction(width: int, height: int) -> int:
    """The smallest whole number by which a picture must be reduced to have at most MOST_PIXELS."""
    factor = 1
    while -(-width // factor) * -(-height // factor) > MOST_PIXELS:
        factor += 1
    return factor


def cut_into_crops(image: Image.Image, crops: int) -> list[Image.Image]:
    """k x k crops of a picture of W x H pixels, for k = `crops`, row by row from the top left.

    The crop in row i and column j has the pixels from floor(j W / k) up to floor((j + 1) W / k) across, and likewise
    down: every pixel is in one crop, and crops differ by at most one pixel in width and in height. For k = 1 it is the
    picture itself. Raises DataError where a side has fewer than k pixels.
    """
    if crops == 1:
        return [image]
    if min(image.size) < crops:
        raise DataError(
            f"{image.width} x {image.height} pixels cannot be cut into {crops} x {crops} crops (client.crops)"
        )
    across, down = ([length * i // crops for i in range(crops + 1)] for length in image.size)
    return [image.crop((across[j], down[i], across[j + 1], down[i + 1])) for i in range(crops) for j in range(crops)]


def middle(image: Image.Image, processor: Any, arguments: Mapping[str, Any]) -> Image.Image:
    """Cut off what an image processor resizes only to crop it away, where that is much.

    A processor that brings the shortest edge to some size and takes the middle would make 1.8 million columns of 8,000
    x 1 pixels. What it takes then differs from what it would have taken by less than a pixel of its own.
    `arguments`: of the call to the processor, which go before its own settings.
    """
    size, crops = (arguments.get(name) or getattr(processor, name, None) for name in ("size", "do_center_crop"))
    if not (crops and size and size.get("shortest_edge")):
        return image
    width, height = image.size
    most = _MOST_ASPECT * min(width, height)
    if max(width, height) <= most:
        return image
    # An even number of pixels less, so that the middle stays where it is.
    left, top = ((length - min(length, most)) // 2 for length in (width, height))
    return image.crop((left, top, width - left, height - top))


def _upright_rgb(image: Image.Image) -> Image.Image:
    tile = image.tile if isinstance(image, ImageFile.ImageFile) else []
    scale = _KEY_SCALE.get(str(tile[0].args)) if tile else None
    image.load()  # a PNG's EXIF may come after its pixels; a TIFF is turned here
    if 0 in image.size:
        raise ValueError(f"it has {image.width} x {image.height} pixels")
    factor = reduction(*image.size)
    key = image.info.get("transparency")
    if image.mode == "RGB" and key is None and factor == 1:
        rgb = image
    else:
        if scale and key is not None:
            key = tuple(int(part * scale) for part in key) if isinstance(key, tuple) else int(key * scale)
        rgb = _blockwise(image, _converter(image, key), factor)
    turn = _UPRIGHT.get(_orientation(image))
    if turn is not None:
        rgb = rgb.transpose(turn)
    elif rgb is image and (image.info or type(image) is not Image.Image):
        rgb = image.copy()
    if rgb is not image:
        rgb.info = {}  # an orientation would be followed a second time
    return rgb


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        return None


def _blockwise(image: Image.Image, convert: Callable[[Image.Image], Image.Image], factor: int) -> Image.Image:
    out = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    side = _BLOCK // factor * factor
    for left, top, block in _blocks(image, side):
        out.paste(convert(block).reduce(factor), (left // factor, top // factor))
    return out


def _blocks(image: Image.Image, side: int = _BLOCK) -> Iterator[tuple[int, int, Image.Image]]:
    for top in range(0, image.height, side):
        for left in range(0, image.width, side):
            yield left, top, image.crop((left, top, min(left + side, image.width), min(top + side, image.height)))


def _converter(image: Image.Image, key: Any) -> Callable[[Image.Image], Image.Image]:
    """From a block of `image` to RGB. key: of Pillow's `transparency`."""
    if image.mode[0] in "IF":  # I, F, I;16 and its byte orders
        return _window(image, key)
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        to_srgb = ImageCms.buildTransform(*profiles, "LAB", "RGB")
        return lambda block: ImageCms.applyTransform(block, to_srgb) or block
    if image.has_transparency_data:
        return lambda block: _on_white(block, key)
    return lambda block: block.convert("RGB")


def _on_white(block: Image.Image, key: Any) -> Image.Image:
    if key is not None:
        block.info["transparency"] = key
    if block.mode == "La":
        block = block.convert("LA")
    return Image.alpha_composite(Image.new("RGBA", block.size, "white"), block.convert("RGBA")).convert("RGB")


def _window(image: Image.Image, key: Any) -> Callable[[Image.Image], Image.Image]:
    """From a block of numbers to grey, by the least and greatest number of the whole image."""
    tags = getattr(image, "tag_v2", {})
    unsigned = image.mode == "I" and tags.get(258) == (32,) and tags.get(339, (1,)) == (1,)  # Pillow reads int32
    white_is_zero = tags.get(262) == 0  # Pillow heeds it in 8 bits alone

    def values(block: Image.Image) -> np.ndarray:
        array = np.asarray(block)
        return (array.view(np.uint32) if unsigned else array).astype(np.float64)

    low, high = np.inf, -np.inf
    for _, _, block in _blocks(image):
        array = values(block)
        finite = np.isfinite(array) & (array != key if isinstance(key, int) else True)
        low = array.min(where=finite, initial=low)
        high = array.max(where=finite, initial=high)
    if low > high:
        raise ValueError("no number in it is finite")
    if image.mode != "F" and low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    elif low == high:
        low, high = (low - 1, high) if low > 0 else (low, high + 1)  # white, or black for nothing

    def grey(block: Image.Image) -> Image.Image:
        array = values(block)
        level = np.nan_to_num((array - low) * (255 / (high - low)), nan=0.0, posinf=255.0, neginf=0.0)
        level = np.clip(np.rint(level), 0, 255).astype(np.uint8)
        if white_is_zero:
            level = 255 - level
        if isinstance(key, int):
            level[array == key] = 255
        return Image.fromarray(level).convert("RGB")

    return grey
