"""Image files, read whole.

Nothing of a file is trusted: only the formats below are tried, so that nothing runs that Pillow would start for others
(Ghostscript for EPS); its size is limited before it is decoded; and whatever a decoder raises is a DataError.
"""

from __future__ import annotations

from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile, get_sampling, jpeg_factory

from bitseam.errors import DataError, first_sentence, printable
from bitseam.models.vision.pictures import cut_into_crops, quiet, reduction, upright_rgb

# Millions of pixels, such that each decoder stays below 1 GB and 10 s, by what it was measured to take for a pixel.
MOST_MEGAPIXELS = {
    "PNG": 100,
    "JPEG": 100,
    "WEBP": 40,
    "TIFF": 40,
    "GIF": 100,
    "BMP": 100,
    "PPM": 100,
    "AVIF": 40,
    "JPEG2000": 25,
    "HEIF": 40,  # where pillow-heif is installed and registered
}
_MOST_IN_PYTHON = 8  # where Pillow's decoder is Python: BMP with runs, PPM as text or of odd depths
_MOST_SUBSAMPLED = 200  # of a JPEG with less colour than light, as phones make them
_MOST_FILE = 2**29  # bytes; some decoders read files whole


def open_image(path: Path) -> Image.Image:
    """A whole decoded image: upright, RGB, on white (`bitseam.models.vision.pictures`). Of several frames the first.

    Raises DataError that names the file and the cause in one line.
    """
    name = printable(str(path))
    try:
        stat = path.stat()
        if not S_ISREG(stat.st_mode):  # opening a pipe would wait for its writer
            raise ValueError("it is a folder" if path.is_dir() else "it is not a file")
        if not 0 < stat.st_size <= _MOST_FILE:
            raise ValueError(f"its file has {stat.st_size:,} bytes; from 1 to {_MOST_FILE:,} are read")
        with quiet(), path.open("rb") as file, _open(file) as image:
            _check_size(image)
            factor = reduction(*image.size)
            if factor > 1 and isinstance(image, JpegImageFile):
                image.draft(None, (image.width // factor, image.height // factor))  # decoded at a part of its size
            return upright_rgb(image)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{name}: not a readable image of the formats {', '.join(MOST_MEGAPIXELS)}") from error
    except Exception as error:  # decoders raise anything
        raise DataError(f"{name}: not a readable image: {first_sentence(error)}") from error


def open_crops(path: Path, crops: int) -> list[Image.Image]:
    """The crops x crops pictures that an image file is cut into (`bitseam.models.vision.pictures.cut_into_crops`).

    Raises DataError that names the file, as `open_image` does.
    """
    image = open_image(path)
    try:
        return cut_into_crops(image, crops)
    except DataError as error:
        raise DataError(f"{printable(str(path))}: {error}") from error


def _open(file: BinaryIO) -> Image.Image:
    start = file.read(3)
    file.seek(0)
    if start == b"\xff\xd8\xff":
        return jpeg_factory(file)  # `Image.open` refuses large photographs, which are not decoded whole here
    Image.init()
    return Image.open(file, formats=[name for name in MOST_MEGAPIXELS if name in Image.OPEN])


def _check_size(image: Image.Image) -> None:
    kind = "JPEG" if isinstance(image, JpegImageFile) else str(image.format)
    most = MOST_MEGAPIXELS[kind]
    if isinstance(image, JpegImageFile) and get_sampling(image) > 0:
        most = _MOST_SUBSAMPLED
    if any(tile.codec_name in Image.DECODERS for tile in getattr(image, "tile", [])):
        most = _MOST_IN_PYTHON
    tags = getattr(image, "tag_v2", {})
    pixels = max(image.width * image.height, tags.get(322, 0) * tags.get(323, 0))  # a TIFF's tiles may be larger
    if pixels > most * 1_000_000:
        raise ValueError(
            f"{image.width} x {image.height} pixels where such a {kind} may have {most} million; make it smaller"
        )
