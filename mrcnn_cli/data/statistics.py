"""Mean and deviation of a data set's channels, by which a network's input is normalised."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mrcnn_cli.data.coco import Dataset
from mrcnn_cli.data.image import normalize
from mrcnn_cli.data.loader import DataConfig
from mrcnn_cli.data.workers import in_workers
from mrcnn_cli.errors import UserError

MOST_PICTURES = 500


@dataclass(frozen=True, slots=True)
class ChannelStatistics:
    """Of all pixels of some pictures, as the network is shown them.

    Attributes:
        mean: [C].
        deviation: [C] standard deviations; 1 instead of that of a channel that is the same everywhere.
        pictures: how many were read.
        faults: what is wrong with each that was not.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    pictures: int
    faults: tuple[str, ...] = ()


def channel_statistics(
    dataset: Dataset, config: DataConfig, most: int = MOST_PICTURES
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of the training pictures.

    Args:
        dataset: the training pictures.
        config: how they are read and normalized; its workers read them.
        most: pictures that are looked at, evenly spread over the data set.

    Returns:
        C means and C deviations; 1 instead of the deviation of a channel that is the same everywhere.

    Raises:
        UserError: an image that cannot be read, or is of other channels than the rest.
    """

    def read(index: int) -> np.ndarray:
        return dataset.read_image(index, config.channels)

    # A picture that is skipped is named and counted when training comes to it.
    found = statistics_of(read, len(dataset), config, most, skip_broken=config.skip_broken)
    if not found.pictures:
        raise UserError(f"{dataset.source}: none of {len(found.faults)} pictures can be read; check the folder")
    return found.mean, found.deviation


def statistics_of(
    read: Callable[[int], np.ndarray],
    count: int,
    config: DataConfig,
    most: int = MOST_PICTURES,
    *,
    skip_broken: bool,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ChannelStatistics:
    """The same of any pictures, and of how many.

    Args:
        read: gives picture 0 .. count - 1 as [H, W, C], all of as many channels.
        count: of the pictures.
        config: how they are normalized; its workers read them.
        most: pictures that are looked at, evenly spread.
        skip_broken: go on after a picture that cannot be read.
        progress: told how many of how many pictures are done.

    Raises:
        UserError: as `read` raised it.
    """
    chosen = np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int)).tolist()

    def moments(place: int) -> tuple[int, np.ndarray, np.ndarray] | str:
        try:
            image = normalize(read(chosen[place]), config.normalize)
        except UserError as fault:
            if skip_broken:
                return str(fault)
            raise
        pixels = image.reshape(-1, image.shape[2])
        mean = pixels.mean(0, dtype=np.float64)
        # Channel by channel: float64 of a whole picture would fill eight times its memory.
        squares = [np.square(pixels[:, c] - mean[c], dtype=np.float64).sum() for c in range(len(mean))]
        return len(pixels), mean, np.array(squares)

    pixels, mean, squares, faults = 0, np.zeros(1), np.zeros(1), []
    for done, found in enumerate(in_workers(moments, range(len(chosen)), config.workers), start=1):
        progress(done, len(chosen))
        if isinstance(found, str):
            faults.append(found)
            continue
        its_pixels, its_mean, its_squares = found
        # Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
        total = pixels + its_pixels
        squares = squares + its_squares + np.square(its_mean - mean) * (pixels * its_pixels / total)
        mean = mean + (its_mean - mean) * (its_pixels / total)
        pixels = total
    deviation = np.sqrt(squares / max(pixels, 1))
    return ChannelStatistics(
        tuple(mean.tolist()),
        tuple(np.where(deviation > 0, deviation, 1.0).tolist()),
        len(chosen) - len(faults),
        tuple(faults),
    )
