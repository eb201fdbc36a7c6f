"""Colours and sharpness of pictures changed; their geometry stays as it is."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

# From red, green and blue to brightness and two axes of colour; grey has none of these two.
YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


def recoloured(image: np.ndarray, gamma: float, contrast: float, brightness: float) -> np.ndarray:
    """All three at once: of bytes through a table of the 256 values, else between the picture's least value (0 where
    none is negative) and its greatest."""
    if gamma == contrast == brightness == 1:
        return image
    if image.dtype != np.uint8:
        low = min(float(image.min()), 0.0)
        span = max(float(image.max()) - low, 1e-30)
        shares = ((image - low) / span) ** gamma
        if contrast != 1:
            mean = shares.mean()
            shares = mean + (shares - mean) * contrast
        return (shares * (brightness * span) + low).astype(np.float32)
    values = (np.arange(256) / 255) ** gamma
    if contrast != 1:
        mean = values[image].mean()
        values = mean + (values - mean) * contrast
    table = (np.clip(values * brightness, 0, 1) * 255 + 0.5).astype(np.uint8)
    return np.take(table, image)


def tinted(image: np.ndarray, saturation: float, turn: float) -> np.ndarray:
    """Colours moved from and turned around the grey of their brightness, both in the plane of YIQ's I and Q."""
    if saturation == 1 and turn == 0:
        return image
    if image.shape[2] != 3:
        raise ValueError(f"training: saturation and hue are of pictures in RGB, not of {image.shape[2]} channels")
    angle = 2 * np.pi * turn
    cosine, sine = saturation * np.cos(angle), saturation * np.sin(angle)
    change = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    matrix = np.linalg.inv(YIQ) @ change @ YIQ
    changed = image.reshape(-1, 3).astype(np.float32) @ matrix.T.astype(np.float32)
    if image.dtype == np.uint8:
        changed = (np.clip(changed, 0, 255) + 0.5).astype(np.uint8)
    return changed.reshape(image.shape)


def distorted(image: np.ndarray, colours: Sequence[float], chance: float, generator: np.random.Generator) -> np.ndarray:
    """SSD's photometric distortion (Liu et al., 2016, section 2.2), in the order of the paper's code.

    First gamma (which the paper has not) and brightness, then contrast before or after saturation and hue, equally
    often; in the end the channels change places. Bytes are rounded and cut to 0..255 in between.

    Args:
        image: uint8 or float32 [H, W, C].
        colours: gamma, contrast, brightness, saturation and turn of hue.
        chance: of each of them to be made, and of the channels to change places.
        generator: draws which.
    """
    draws = generator.random(7)
    neutral = (1.0, 1.0, 1.0, 1.0, 0.0)
    gamma, contrast, brightness, saturation, turn = (
        value if draw < chance else none for value, none, draw in zip(colours, neutral, draws, strict=False)
    )
    image = recoloured(image, gamma, 1.0, brightness)
    if draws[5] < 0.5:
        image = tinted(recoloured(image, 1.0, contrast, 1.0), saturation, turn)
    else:
        image = recoloured(tinted(image, saturation, turn), 1.0, contrast, 1.0)
    return image[..., generator.permutation(image.shape[2])] if draws[6] < chance else image


def blurred(pixels: Tensor, sigma: float) -> Tensor:
    """By a Gaussian of `sigma` pixels, cut off at three of them; the picture goes on as its edges are."""
    reach = math.ceil(3 * sigma)
    weights = torch.exp(-(torch.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    channels = len(pixels)
    weights = (weights / weights.sum()).expand(channels, 1, -1)
    padded = pad(pixels[None].float(), (reach, reach, reach, reach), mode="replicate")
    padded = padded.contiguous(memory_format=torch.channels_last)  # several times as fast in this order
    soft = conv2d(padded, weights[:, :, None], groups=channels)
    soft = conv2d(soft, weights[:, :, :, None], groups=channels)[0]
    return (soft + 0.5).to(torch.uint8) if pixels.dtype == torch.uint8 else soft
