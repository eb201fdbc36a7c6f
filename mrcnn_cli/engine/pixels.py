"""The recipe fitted to the pictures' channels and depth, before the first step."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mrcnn_cli.data.coco import Dataset
from mrcnn_cli.data.image import normalize
from mrcnn_cli.data.loader import DataConfig
from mrcnn_cli.data.statistics import channel_statistics
from mrcnn_cli.errors import UserError
from mrcnn_cli.models.preprocess import PixelsConfig

AUTO = "--set model.pixels.mean=auto --set model.pixels.deviation=auto"
# Pictures of 16 bits that use less than this part of the range, as those of 12-bit cameras, lose most of their depth.
USED_RANGE = 0.25
FAR = 10.0  # deviations from the recipe's mean at which a picture cannot be meant


def fit_pixels(data: DataConfig, pixels: PixelsConfig, train: Dataset) -> tuple[DataConfig, PixelsConfig, list[str]]:
    """Both tables with the number of channels, mean and deviation filled in, and what a person should know.

    The channels are those of the first picture, unless the recipe says how many. Where its mean is "auto", or has
    another number of values, mean and deviation are computed from the training pictures. The canvas on which pictures
    are zoomed out has this mean, unless the recipe names a colour.

    Raises:
        UserError: a picture that cannot be read; colours to vary in pictures without colours, or for a canvas, that
            the pictures have not.
    """
    image, path = _first(train, data)
    channels = image.shape[2]
    data = data.model_copy(update={"channels": channels})
    if channels != 3 and (data.augment.saturation != (1, 1) or data.augment.hue != (0, 0)):
        raise UserError(
            f"data.augment: saturation and hue are of pictures in RGB, {path} has {channels} channels; leave them out"
        )
    warnings = depth_warnings(image, path, data)
    if pixels.mean != "auto" and len(pixels.mean) != channels:
        warnings.append(
            f"the pictures have {channels} channels, model.pixels.mean has {len(pixels.mean)} values: mean and "
            "deviation are computed from the training pictures and kept with the weights"
        )
        pixels = pixels.model_copy(update={"mean": "auto", "deviation": "auto"})
    if pixels.mean == "auto":
        mean, deviation = (in_recipes_order(values, pixels) for values in channel_statistics(train, data))
        pixels = PixelsConfig.model_validate(pixels.model_dump() | {"mean": mean, "deviation": deviation})
    elif data.normalize == "raw":
        found = normalize(image, "raw").reshape(-1, channels).mean(0)
        given = np.array([pixels.mean, pixels.deviation], np.float64)
        if (np.abs(found - given[0]) > FAR * given[1]).any():
            warnings.append(
                f"{path}: the mean of its pixels is {found.max():g}, far from model.pixels.mean; "
                f"{AUTO} computes it from the pictures"
            )
    return _with_canvas(data, pixels, path), pixels, warnings


def _with_canvas(data: DataConfig, pixels: PixelsConfig, path: Path) -> DataConfig:
    """With the colour of the canvas on which pictures are zoomed out."""
    augment = data.augment
    if not augment.zoom_out:
        return data
    if augment.zoom_out_colour is None:
        mean = tuple(float(value) for value in pixels.mean)
        augment = augment.model_copy(update={"zoom_out_colour": mean[::-1] if pixels.channels == "bgr" else mean})
    elif len(augment.zoom_out_colour) != data.channels:
        raise UserError(
            f"data.augment.zoom_out_colour has {len(augment.zoom_out_colour)} values, {path} {data.channels} channels; "
            "leave it out to take the mean"
        )
    return data.model_copy(update={"augment": augment})


def _first(train: Dataset, data: DataConfig) -> tuple[np.ndarray, Path]:
    """The first picture, or with data.skip_broken the first that can be read; and its file."""
    for index, record in enumerate(train.images):
        try:
            return train.read_image(index, data.channels), record.path
        except UserError:
            if not data.skip_broken:
                raise
    raise UserError(f"{train.source}: none of its {len(train)} pictures can be read; check the folder {record.folder}")


def in_recipes_order(values: Sequence[float], pixels: PixelsConfig) -> tuple[float, ...]:
    """[C] values of a picture's channels as `model.pixels` has them: with six digits, in the order of its channels."""
    rounded = tuple(float(f"{value:.6g}") for value in values)
    return rounded[::-1] if pixels.channels == "bgr" else rounded


def depth_warnings(image: np.ndarray, path: Path, data: DataConfig) -> list[str]:
    """Says so where `data.normalize` would lose most of a picture's depth."""
    if image.dtype != np.uint16 or data.normalize != "none" or image.max() >= USED_RANGE * 65535:
        return []
    return [
        f"{path}: its 16-bit pixels reach {image.max()} of 65535 and would become nearly black; take "
        f"--set data.normalize=percentile, or data.normalize=raw with {AUTO}"
    ]
