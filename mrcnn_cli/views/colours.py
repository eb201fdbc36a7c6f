"""Colours that tell neighbouring objects apart, evenly bright to the eye, and those of diagrams on white paper."""

import functools

import numpy as np

Colour = tuple[int, int, int]

INK: Colour = (31, 35, 43)
PALE: Colour = (104, 111, 122)
GRID: Colour = (228, 231, 236)
ALARM: Colour = (200, 30, 45)

# told apart by the colour-blind too (Okabe and Ito, "Color Universal Design", 2008), darkened a little for white paper
HUES: tuple[Colour, ...] = ((0, 114, 178), (213, 94, 0), (0, 146, 106), (190, 100, 152), (214, 144, 0), (66, 160, 214))

GOLDEN_ANGLE = 137.50776405003785  # degrees; successive hues never come close to the last few
SIZE = 24
LIGHTNESS = (0.80, 0.68)  # of OKLab, 0..1: bright enough for dark text and for dark pictures
CHROMA = 0.19  # or as much of it as sRGB can show
DISTINCT = 0.16  # distance in OKLab from which two colours are told apart at a glance


@functools.cache
def palette() -> np.ndarray:
    """[24, 3] uint8 sRGB colours: hues a golden angle apart in OKLCH (Ottosson, "A perceptual color space", 2020)."""
    colours = []
    for index in range(SIZE):
        hue = np.radians(25 + index * GOLDEN_ANGLE)
        lightness = LIGHTNESS[index % len(LIGHTNESS)]
        chroma = next(c for c in np.arange(CHROMA, 0, -0.005) if _shown(_linear(lightness, c, hue)))
        colours.append(_encoded(_linear(lightness, chroma, hue)))
    return np.array(colours, dtype=np.uint8)


def choose(boxes: np.ndarray, fixed: np.ndarray | None = None) -> np.ndarray:
    """An index into `palette()` for each object, so that objects that touch or nearly touch differ.

    Args:
        boxes: [D, 4] pixels.
        fixed: [D] indices that are given beforehand, -1 where there is a choice.

    Returns:
        [D] int64. The same boxes in the same order always get the same colours.
    """
    count = len(boxes)
    chosen = np.full(count, -1, np.int64) if fixed is None else fixed.astype(np.int64)
    if not count:
        return chosen
    reach = 0.5 * np.maximum(boxes[:, 2:] - boxes[:, :2], 0) + 2  # how far beyond its box an object's nearness goes
    low, high = boxes[:, :2] - reach, boxes[:, 2:] + reach
    distances = _distances()
    used = np.bincount(chosen[chosen >= 0], minlength=SIZE)
    for index in range(count):
        if chosen[index] >= 0:
            continue
        near = (low[index] <= boxes[:, 2:]).all(axis=1) & (boxes[:, :2] <= high[index]).all(axis=1) & (chosen >= 0)
        order = np.argsort(used, kind="stable")
        contrast = distances[order][:, np.unique(chosen[near])].min(axis=1, initial=DISTINCT)
        chosen[index] = order[contrast.argmax()]  # the least used that is distinct, else the most distinct
        used[chosen[index]] += 1
    return chosen


def oklab(colours: np.ndarray) -> np.ndarray:
    """[..., 3] sRGB 0..255 as OKLab, in which distances are about as large as they look."""
    values = np.asarray(colours, dtype=np.float64) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _TO_CONES.T) @ _TO_LAB.T


def luminance(colours: np.ndarray) -> np.ndarray:
    """Relative luminance 0..1 of [..., 3] sRGB 0..255 (WCAG 2.1)."""
    values = np.asarray(colours, dtype=np.float64) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722])


def contrast(one: np.ndarray | Colour, other: np.ndarray | Colour) -> float:
    """The contrast ratio of two colours, 1..21; text is readable from 4.5 on (WCAG 2.1)."""
    low, high = sorted((float(luminance(np.asarray(one))), float(luminance(np.asarray(other)))))
    return (high + 0.05) / (low + 0.05)


# linear sRGB -> cone responses -> OKLab, from Ottosson's article
_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def _linear(lightness: float, chroma: float, hue: float) -> np.ndarray:
    lab = np.array([lightness, chroma * np.cos(hue), chroma * np.sin(hue)])
    return np.linalg.solve(_TO_CONES, np.linalg.solve(_TO_LAB, lab) ** 3)


def _shown(linear: np.ndarray) -> bool:
    return bool((linear >= 0).all() and (linear <= 1).all())


def _encoded(linear: np.ndarray) -> np.ndarray:
    return np.rint(255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055))


@functools.cache
def _distances() -> np.ndarray:
    lab = oklab(palette())
    return np.linalg.norm(lab[:, None] - lab[None], axis=2)
