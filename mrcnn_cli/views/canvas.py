"""What all pictures need: a font, text that it can spell, and files that are whole or absent."""

import functools
import os
import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mrcnn_cli.errors import UserError
from mrcnn_cli.views import colours

Font = ImageFont.FreeTypeFont

INK = (17, 19, 24)  # nearly black
PAPER = (255, 255, 255)


@functools.cache
def font(size: int) -> Font:
    """Pillow's own font, so that pictures look the same on every machine; `size` in pixels."""
    face = ImageFont.load_default(size=size)
    if not isinstance(face, ImageFont.FreeTypeFont):
        raise UserError(
            "Pillow: was built without FreeType, so text cannot be drawn; reinstall it by pip install Pillow"
        )
    return face


def spell(text: str) -> str:
    """`text` in characters that the font has: accents are dropped where it lacks them, the rest becomes "?"."""
    letters = []
    for letter in text:
        if _has(letter):
            letters.append(letter)
            continue
        plain = "".join(part for part in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(part))
        letters.append("".join(part if _has(part) else "?" for part in plain))
    return "".join(letters)


def fit(text: str, face: Font, width: float) -> str:
    """`text`, cut and ended by an ellipsis where it is wider than `width` pixels."""
    if face.getlength(text) <= width:
        return text
    while text and face.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def blend(
    picture: Image.Image, left: int, top: int, coverage: np.ndarray, paint: np.ndarray | colours.Colour, opacity: float
) -> None:
    """Paints a colour where `coverage` [h, w] 0..255 says; what lies beyond the picture's edges is left out."""
    height, width = coverage.shape
    mask = Image.fromarray(_scaled(opacity)[coverage])
    picture.paste(tuple(int(part) for part in paint), (left, top, left + width, top + height), mask)


@functools.cache
def _scaled(opacity: float) -> np.ndarray:
    return np.rint(np.arange(256) * opacity).astype(np.uint8)


def shared(plate: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The area that a rectangle has in common with each of the others."""
    low, high = np.maximum(plate[:2], others[:, :2]), np.minimum(plate[2:], others[:, 2:])
    return np.maximum(high - low, 0).prod(axis=1)


def plate(pen: ImageDraw.ImageDraw, box: np.ndarray, text: str, face: Font, paint: np.ndarray) -> None:
    """Draws a label: text on a box [4] in a colour, dark or light, whichever is read better."""
    ink = max((INK, PAPER), key=lambda ink: colours.contrast(ink, paint))
    x1, y1, x2, y2 = box.tolist()
    pen.rounded_rectangle((x1, y1, x2 - 1, y2 - 1), radius=pad(face) * 0.6, fill=tuple(paint.tolist()))
    pen.text((x1 + pad(face), (y1 + y2) / 2), text, fill=ink, font=face, anchor="lm")


def extent(text: str, face: Font) -> np.ndarray:
    """(width, height) of a label."""
    return np.array([round(face.getlength(text)) + 2 * pad(face), round(face.size) + 2 * pad(face)])


def pad(face: Font) -> int:
    """Pixels between a label's text and its edge."""
    return max(round(face.size * 0.28), 2)


def save(image: Image.Image, path: str | Path) -> None:
    """Writes a picture beside `path` and renames it, so that `path` is never half a picture.

    Raises:
        UserError: the file cannot be written, or its suffix is no format for pictures.
    """
    path = Path(path)
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise UserError(f"{path}: not a name for a picture; use .png or .jpg")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            image.save(file, format=kind, **({"quality": 92} if kind in ("JPEG", "WEBP") else {}))
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}; choose another place") from None
    finally:
        temporary.unlink(missing_ok=True)


@functools.cache
def _has(letter: str) -> bool:
    face = font(20)
    drawn, missing = face.getmask(letter), face.getmask("\uffff")  # a non-character: drawn as the missing glyph
    return letter.isspace() or (drawn.size, bytes(drawn)) != (missing.size, bytes(missing))
