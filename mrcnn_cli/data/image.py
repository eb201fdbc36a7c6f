"""Pictures from files, upright and of as many channels as are wanted, and their pixels brought to 0..255."""

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mrcnn_cli.data.tiff import encode_tiff, is_tiff, read_tiff, tiff_header
from mrcnn_cli.errors import UserError

Normalization = Literal["none", "percentile", "channel_percentile", "raw"]

# What a search through folders takes for an image; `read_image` tries any file.
SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
# 13,000 x 13,000: a picture of more would take half a gigabyte in RGB alone, and a few bytes can claim to be one.
MAX_PIXELS = 178_956_970
PERCENTILES = (1.0, 99.8)
BRIGHTNESS = np.array([[0.299], [0.587], [0.114]])  # of red, green and blue (ITU-R BT.601), as Pillow's

_ORIENTATION = 0x0112  # the EXIF tag
_BITS, _SAMPLES = 258, 277  # tags of TIFF
_EXTRA_SAMPLES = 338  # 0 is a channel, others are transparency
_SIDEWAYS = (5, 6, 7, 8)  # its values that swap height and width
_PIXELS = {  # Pillow's modes in words
    "1": "1-bit grey",
    "L": "8-bit grey",
    "LA": "8-bit grey with transparency",
    "P": "8-bit palette",
    "RGB": "8-bit RGB",
    "RGBA": "8-bit RGB with transparency",
    "CMYK": "8-bit CMYK",
    "YCbCr": "8-bit YCbCr",
    "I": "32-bit grey",
    "I;16": "16-bit grey",
    "I;16B": "16-bit grey",
    "F": "float grey",
}


def read_image(path: str | Path, channels: int | None = None) -> np.ndarray:
    """The picture of a file, upright (EXIF orientation): [H, W, C].

    Transparency is dropped, the colours below it stay; of an animation the first picture is taken. TIFF files of more
    than three channels, of deep colours, and those whose pages are channels need tifffile.

    Args:
        path: any format that Pillow reads, and TIFF files of up to 32 channels.
        channels: C. 1: grey, of colours their brightness; 3: RGB, grey three times; 4: RGB and transparency; others as
            in the file. None: 3, but for files of another number of channels.

    Returns:
        uint8; uint16 for files of 16 bits; float32 for all other types, integer or float. Deep pixels keep the file's
        values, see `normalize`. Colour files of 16 bits per channel that are no TIFF files arrive as uint8.

    Raises:
        UserError: no such file, not an image, damaged or cut short, too large, or of other channels.
    """
    path = Path(path)
    if _needs_tifffile(path):
        with _worded(path):
            return _fitted(read_tiff(path, MAX_PIXELS, alpha=channels == 4), channels, path)
    with _opened(path) as image:
        kind = image.format
        image.load()
        return _fitted(_pixels(ImageOps.exif_transpose(image), kind, channels), channels, path)


def image_size(path: str | Path, *, upright: bool = True) -> tuple[int, int]:
    """(height, width) of the upright picture, from the file's header; as stored where `upright` is False.

    Raises:
        UserError: no such file, not an image, or too large.
    """
    description = describe(path)
    return description.size if upright else description.stored_size


@dataclass(frozen=True, slots=True)
class Description:
    """What a file's header says.

    Attributes:
        size: (height, width) of the upright picture.
        stored_size: the same before the EXIF orientation turns it.
        orientation: the EXIF tag, 1 where there is none.
        pixels: depth and channels in words, such as "8-bit RGB".
    """

    size: tuple[int, int]
    stored_size: tuple[int, int]
    orientation: int
    pixels: str


def describe(path: str | Path) -> Description:
    """What a picture is, without decoding it.

    Raises:
        UserError: no such file, not an image, or too large.
    """
    path = Path(path)
    if _needs_tifffile(path):
        with _worded(path):
            (height, width), orientation, pixels = tiff_header(path)
            return Description(
                (width, height) if orientation in _SIDEWAYS else (height, width), (height, width), orientation, pixels
            )
    with _opened(path) as image:
        width, height = image.size
        if image.format == "PNG" and "exif" not in image.info:
            # It may stand behind the pixels. Pillow would decode all of them to look there.
            image.info.update(_png_exif(path))
        orientation = Image.Image.getexif(image).get(_ORIENTATION, 1)
        sizes = [(height, width), (height, width)]
        if orientation in _SIDEWAYS:
            already = image.format == "TIFF"  # which Pillow turns by itself
            sizes[int(already)] = (width, height)
        pixels = "16-bit grey" if (image.mode, image.format) == ("I", "PNG") else _PIXELS.get(image.mode, image.mode)
    return Description(sizes[0], sizes[1], orientation, pixels)


def preview(path: str | Path, side: int) -> np.ndarray:
    """The picture of a file, upright and no larger than `side` pixels: uint8 [h, w, 3].

    JPEG files are decoded at the size that is needed, several times as fast as in full. Deep pixels are stretched
    between percentiles, see `normalize`.

    Raises:
        UserError: no such file, not an image, damaged or cut short, or too large.
    """
    path = Path(path)
    with _opened(path) as image:
        picture = None
        if image.format == "JPEG":
            image.draft("RGB", (side, side))
            picture = ImageOps.exif_transpose(image).convert("RGB")
    if picture is None:
        picture = Image.fromarray(as_rgb(read_image(path)))
    picture.thumbnail((side, side), Image.Resampling.BOX, reducing_gap=None)
    return np.array(picture)


def encode_png(image: np.ndarray) -> bytes:
    """A picture of bytes [H, W, 1], [H, W, 3] or [H, W, 4], or of 16 bits [H, W, 1], as a PNG file's content."""
    return _png(Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image))


def encode_image(image: np.ndarray) -> tuple[str, bytes]:
    """The suffix and content of a file that holds a picture [H, W, C] without loss: PNG where that can, else TIFF.

    Raises:
        UserError: it takes a TIFF file of several channels, and tifffile is not installed.
    """
    channels = image.shape[2]
    if (image.dtype == np.uint8 and channels in (1, 3, 4)) or (image.dtype == np.uint16 and channels == 1):
        return ".png", encode_png(image)
    return ".tif", encode_tiff(image)


def as_rgb(image: np.ndarray) -> np.ndarray:
    """What people look at: uint8 [H, W, 3], of a picture of any type and any number of channels.

    Two channels are shown in red and green, of more than three the first three; bytes as they are, deep pixels
    stretched channel by channel.
    """
    shown = image[:, :, :3]
    if shown.shape[2] == 1:
        shown = shown.repeat(3, axis=2)
    elif shown.shape[2] == 2:
        shown = np.concatenate([shown, np.zeros_like(shown[:, :, :1])], axis=2)
    return np.ascontiguousarray(normalize(shown, "none" if shown.dtype == np.uint8 else "channel_percentile"))


def normalize(image: np.ndarray, mode: Normalization) -> np.ndarray:
    """The picture as the network is shown it: uint8 [H, W, C] of 0..255, but for "raw".

    Args:
        image: [H, W, C] of any real type; pixels that are not finite count as the lowest.
        mode: "none": uint8 stays as it is, other integers are scaled by the range of their type, floats by their
            lowest and highest value. "percentile": the 1st percentile of all channels together becomes 0, the 99.8th
            becomes 255 and what lies beyond is clipped, so that a dim picture becomes visible. Where both are one
            value (a few bright pixels on black) the lowest and highest take their place. A picture of one value
            becomes 0. "channel_percentile": the same for each channel by itself. "raw": the file's values: uint8 stays
            as it is, everything else becomes float32.
    """
    if mode in ("none", "raw") and image.dtype == np.uint8:
        return image
    if mode == "channel_percentile":
        parts = [normalize(image[:, :, c : c + 1], "percentile") for c in range(image.shape[2])]
        return np.concatenate(parts, axis=2)
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        finite = image[np.isfinite(image)]
        lowest = finite.min() if len(finite) else 0
        image = np.where(np.isfinite(image), image, np.asarray(lowest, image.dtype))
    if mode == "raw":
        return image.astype(np.float32)
    if mode == "percentile":
        low, high = _percentiles(image)
        if low == high:
            low, high = float(image.min()), float(image.max())
    elif image.dtype.kind in "ui":
        low, high = 0.0, float(np.iinfo(image.dtype).max)
    else:
        low, high = float(image.min()), float(image.max())
    return _stretch(image, low, high)


def resized_by_pillow(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[h, w, C] by Pillow's bilinear filter, which antialiases when shrinking.

    Args:
        image: uint8 or float32 [H, W, C].
        size: (height, width).
    """
    if image.shape[2] != 3 or image.dtype != np.uint8:  # of these Pillow knows single channels
        channels = [Image.fromarray(np.ascontiguousarray(image[:, :, c])) for c in range(image.shape[2])]
        return np.stack([np.asarray(c.resize(size[::-1], Image.Resampling.BILINEAR)) for c in channels], axis=2)
    return np.array(Image.fromarray(np.ascontiguousarray(image)).resize(size[::-1], Image.Resampling.BILINEAR))


def _png_exif(path: Path) -> dict[str, bytes]:
    """{"exif": data} of a PNG file that has such a chunk."""
    with path.open("rb") as file:
        file.seek(8)  # the signature; then chunks of length, name, data, checksum
        while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
            length = int.from_bytes(head[:4], "big")
            if head[4:] == b"eXIf":
                return {"exif": file.read(length)}
            file.seek(length + 4, os.SEEK_CUR)
    return {}


def _percentiles(image: np.ndarray) -> tuple[float, float]:
    """numpy.percentile, from a histogram where the pixels are 8 or 16 bits deep (several times faster)."""
    if image.dtype not in (np.uint8, np.uint16):
        low, high = np.percentile(image, PERCENTILES)
        return float(low), float(high)
    below = np.bincount(image.reshape(-1), minlength=1).cumsum()  # pixels up to each value
    position = np.asarray(PERCENTILES) / 100 * (image.size - 1)
    first, second = np.searchsorted(below, np.stack([np.floor(position), np.ceil(position)]), side="right")
    low, high = first + (second - first) * (position % 1)
    return float(low), float(high)


def _stretch(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """`low` becomes 0 and `high` 255, to the nearest integer."""
    if low == high:
        return np.zeros(image.shape, np.uint8)
    if image.dtype in (np.uint8, np.uint16):  # a table of all values is smaller than the picture
        values = np.arange(np.iinfo(image.dtype).max + 1, dtype=np.float64)
        return np.take(_to_bytes(values, low, high), image)
    return _to_bytes(image, low, high)


def _to_bytes(values: np.ndarray, low: float, high: float) -> np.ndarray:
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return (np.clip(scaled, 0, 255) + 0.5).astype(np.uint8)


def _needs_tifffile(path: Path) -> bool:
    """Whether a file is a TIFF file of which Pillow would read nothing, or too little."""
    if not is_tiff(path):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(path) as image:
                tags = getattr(image, "tag_v2", {})
                deep = tags.get(_SAMPLES, 1) > 1 and max(tags.get(_BITS, (8,))) > 8
                return deep or 0 in tags.get(_EXTRA_SAMPLES, ()) or _has_pages(image)
        except UnidentifiedImageError:
            return True
        except Exception:  # worded where the file is read
            return False


def _has_pages(image: Image.Image) -> bool:
    """Whether there is a second grey page like the first one."""
    if getattr(image, "n_frames", 1) == 1 or image.mode in ("RGB", "RGBA", "CMYK", "YCbCr", "P"):
        return False
    first = (image.mode, image.size)
    image.seek(1)
    return (image.mode, image.size) == first


def _pixels(image: Image.Image, kind: str | None, channels: int | None) -> np.ndarray:
    """[H, W, C]: 1 for deep pixels, else as many as are wanted and Pillow has a mode for, else 3."""
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)[:, :, None]
    if image.mode == "I":
        # Older Pillow opens PNG files of 16 bits with 32.
        return np.asarray(image).astype(np.uint16 if kind == "PNG" else np.float32)[:, :, None]
    if image.mode == "F":
        return np.asarray(image).astype(np.float32)[:, :, None]
    if channels == 1:
        return np.array(image.convert("L"))[:, :, None]
    if channels == 4 and (image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info):
        return np.array(image.convert("RGBA"))
    return np.array(image.convert("RGB"))


def _fitted(pixels: np.ndarray, channels: int | None, path: Path) -> np.ndarray:
    """The picture with the channels that are wanted: grey three times, of colours their brightness."""
    found = pixels.shape[2]
    if found == 1 and channels in (None, 3):
        return np.repeat(pixels, 3, axis=2)
    if channels in (None, found):
        return pixels
    if channels == 1 and found == 3:
        grey = pixels.astype(np.float64) @ BRIGHTNESS
        return (grey + 0.5 if pixels.dtype.kind == "u" else grey).astype(pixels.dtype)
    raise UserError(
        f"{path}: has {found} channel{'s' if found > 1 else ''}, but {channels} are wanted (data.channels); "
        "convert it, or keep pictures of one kind together"
    )


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The opened file; whatever goes wrong with it is worded."""
    with _worded(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata; large pictures are judged below
        with Image.open(path) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Image.DecompressionBombError
            if width * height == 0:
                raise UserError(f"{path}: is {width} x {height} pixels, so there is nothing in it; remove it")
            yield image


@contextmanager
def _worded(path: Path) -> Iterator[None]:
    """Whatever goes wrong with a file is worded for the person whose file it is."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such image; check the path") from None
    except Image.DecompressionBombError:
        raise UserError(
            f"{path}: claims more than {MAX_PIXELS // 10**6} million pixels; cut it into tiles, "
            "or remove it if it should be small"
        ) from None
    except UnidentifiedImageError:
        empty = path.stat().st_size == 0
        found = "is empty (0 bytes)" if empty else "is not an image in a format that Pillow reads"
        raise UserError(f"{path}: {found}; replace it by a PNG or JPEG file") from None
    except (IsADirectoryError, PermissionError) as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; name a readable image file") from None
    except MemoryError:
        raise UserError(f"{path}: does not fit into memory; cut it into tiles") from None
    except Exception as error:  # a broken file makes decoders raise anything: OSError, ValueError, SyntaxError
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "imagecodecs" in reason:  # tifffile asks for it
            raise UserError(f"{path}: its compression needs imagecodecs; run: pip install imagecodecs") from None
        raise UserError(f"{path}: damaged or cut short ({reason}); copy or export it again") from None


def read_label_map(path: str | Path) -> np.ndarray:
    """The values of a picture whose pixels are numbers of objects or classes: [H, W] int64.

    Of a palette the number is taken, not the colour; of grey the value (8, 16 or 32 bits); of colours
    red << 16 | green << 8 | blue, transparency left out.

    Raises:
        UserError: no such file, not an image, damaged, too large, or with values that are no whole numbers.
    """
    with _opened(Path(path)) as image:
        image.load()
        if image.mode in ("P", "L", "1") or image.mode.startswith("I"):
            return np.asarray(image).astype(np.int64)
        if image.mode == "F":
            values = np.asarray(image)
            if not np.array_equal(values, np.round(values)):
                raise UserError(f"{path}: has values that are no whole numbers, so it is no label map; correct it")
            return values.astype(np.int64)
        red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")).astype(np.int64), 2, 0)
        grey = (red == green) & (green == blue)
        return red if grey.all() else red << 16 | green << 8 | blue


def is_grey(path: str | Path) -> bool:
    """Whether a file's pixels are single numbers (grey or with a palette), by its header.

    Raises:
        UserError: no such file, or not an image.
    """
    with _opened(Path(path)) as image:
        return image.mode in ("P", "L", "1", "F") or image.mode.startswith("I")


def read_mask(content: bytes | str | Path) -> np.ndarray:
    """The pixels of a mask file or its bytes that are not black (or, of a palette, not its first colour): [H, W] bool.

    Raises:
        UserError: it is no image.
    """
    if isinstance(content, bytes):
        try:
            with Image.open(io.BytesIO(content)) as image:
                image.load()
                return _is_set(image)
        except Exception as error:  # a broken file makes Pillow's decoders raise anything
            raise UserError(f"an embedded mask is no image ({error})") from None
    with _opened(Path(content)) as image:
        image.load()
        return _is_set(image)


def palette_png(labels: np.ndarray, palette: list[int]) -> bytes:
    """A PNG file of numbers [H, W] uint8 with a colour for each.

    Args:
        labels: the numbers.
        palette: r, g, b of 0, 1, ...
    """
    image = Image.fromarray(labels)
    image.putpalette(palette)
    return _png(image)


def mask_png(mask: np.ndarray) -> bytes:
    """A PNG file of a bitmap [H, W], one bit for each pixel."""
    return _png(Image.fromarray(mask.astype(bool)))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _is_set(image: Image.Image) -> np.ndarray:
    if image.mode in ("P", "L", "1", "F") or image.mode.startswith("I"):
        pixels = np.asarray(image)
        return pixels.astype(bool)
    colours = np.asarray(image.convert("RGB"))
    return colours.max(axis=2) > 0
