"""TIFF files of any number of channels and any depth, by tifffile: an extra, for the files that Pillow cannot read."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from mrcnn_cli.errors import UserError

MOST_CHANNELS = 32
INSTALL = "pip install 'mrcnn-cli[tiff]'"

_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_CHANNELS = ("S", "C", "Q", "I")  # samples of a pixel, channels, and pages of which nothing is said
_ORIENTATION = 274  # the tag


def is_tiff(path: Path) -> bool:
    """Whether a file begins as TIFF files do; False where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(4) in _SIGNATURES
    except OSError:
        return False


def read_tiff(path: Path, most_pixels: int, alpha: bool = False) -> np.ndarray:
    """The first picture of a file, upright: [H, W, C] uint8, uint16 or, of any other type, float32.

    Pages of one size are channels, unless the file calls them slices or times.

    Args:
        path: the file.
        most_pixels: more are refused before anything is read.
        alpha: whether channels of transparency are kept.

    Raises:
        UserError: tifffile is not installed, or there is more than one plane of channels.
        Exception: whatever tifffile raises for a broken file.
    """
    with _tifffile(path).TiffFile(path) as file:
        series = file.series[0]
        page = file.pages.first
        # Axes of one place say nothing, whatever they are.
        axes = "".join(
            axis for axis, extent in zip(series.axes, series.shape, strict=True) if extent > 1 or axis in "YX"
        )
        channel = axes.replace("Y", "").replace("X", "")
        if sorted(axes.replace(channel, "")) != ["X", "Y"] or (channel and channel not in _CHANNELS):
            shape = " x ".join(map(str, series.shape))
            raise UserError(f"{path}: is a stack {series.axes} of {shape}; save each plane of channels (C, Y, X) alone")
        extents = dict(zip(series.axes, series.shape, strict=True))
        count = extents[channel] if channel else 1
        if count > MOST_CHANNELS:
            raise UserError(f"{path}: holds {count} channels or pages, at most {MOST_CHANNELS} are read; save fewer")
        if extents["Y"] * extents["X"] > most_pixels:
            raise UserError(f"{path}: claims more than {most_pixels // 10**6} million pixels; cut it into tiles")
        array = series.asarray().reshape([extents[axis] for axis in axes])
        array = np.transpose(array, [axes.index(axis) for axis in ("Y", "X", channel) if axis])
        array = array.reshape(*array.shape[:2], count)
        if not alpha and channel == "S":
            hidden = sum(int(kind) in (1, 2) for kind in page.extrasamples)
            array = array[:, :, : count - hidden]
        return _known_type(_upright(array, _orientation(page)))


def tiff_header(path: Path) -> tuple[tuple[int, int], int, str]:
    """(height, width) of a file's first picture as stored, its orientation (EXIF), and its pixels in words."""
    with _tifffile(path).TiffFile(path) as file:
        page, series = file.pages.first, file.series[0]
        size = (int(page.imagelength), int(page.imagewidth))
        channels = series.size // (size[0] * size[1])
        kind = "float" if series.dtype.kind == "f" else "bit"
        words = f"{8 * series.dtype.itemsize}-{kind} of {channels} channel{'s' if channels > 1 else ''}"
        return size, _orientation(page), words


def encode_tiff(image: np.ndarray) -> bytes:
    """A picture [H, W, C] as a TIFF file's content: compressed without loss, three channels of bytes as colours.

    Raises:
        UserError: tifffile is not installed.
    """
    buffer = io.BytesIO()
    kind = "rgb" if image.shape[2] == 3 and image.dtype == np.uint8 else "minisblack"
    _tifffile("a TIFF file").imwrite(
        buffer, image, photometric=kind, planarconfig="contig" if image.shape[2] > 1 else None, compression="zlib"
    )
    return buffer.getvalue()


def _tifffile(path: str | os.PathLike[str]) -> Any:
    try:
        import tifffile
    except ImportError:
        raise UserError(
            f"{path}: more than three channels, deep colours and pages that are channels need tifffile; run: {INSTALL}"
        ) from None
    return tifffile


def _orientation(page: Any) -> int:
    tag = page.tags.get(_ORIENTATION)
    return int(tag.value) if tag is not None else 1


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turned as the tag says: 2 to 4 are flips, 5 to 8 the same after rows and columns were exchanged."""
    if orientation >= 5:
        array = array.transpose(1, 0, 2)
    if orientation in (2, 3, 7, 6):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array


def _known_type(array: np.ndarray) -> np.ndarray:
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    kind = array.dtype.newbyteorder("=") if array.dtype in (np.uint8, np.uint16) else np.float32
    return np.ascontiguousarray(array, kind)
