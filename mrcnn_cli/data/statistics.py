"""Mean and deviation of a data set's channels, by which a network's input is normalised."""

import numpy as np

from mrcnn_cli.data.coco import Dataset
from mrcnn_cli.data.image import normalize
from mrcnn_cli.data.loader import DataConfig
from mrcnn_cli.data.workers import in_workers
from mrcnn_cli.errors import UserError

MOST_PICTURES = 500


def channel_statistics(
    dataset: Dataset, config: DataConfig, most: int = MOST_PICTURES
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels of the pictures, as the network is shown them.

    Args:
        dataset: the training pictures.
        config: how they are read and normalized; its workers read them.
        most: pictures that are looked at, evenly spread over the data set.

    Returns:
        C means and C deviations; 1 instead of the deviation of a channel that is the same everywhere.

    Raises:
        UserError: an image that cannot be read, or is of other channels than the rest.
    """
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(most, len(dataset))).round().astype(int)).tolist()

    def moments(place: int) -> tuple[int, np.ndarray, np.ndarray] | None:
        try:
            image = normalize(dataset.read_image(chosen[place], config.channels), config.normalize)
        except UserError:
            if config.skip_broken:  # named and counted when training comes to it
                return None
            raise
        pixels = image.reshape(-1, image.shape[2])
        mean = pixels.mean(0, dtype=np.float64)
        # Channel by channel: float64 of a whole picture would fill eight times its memory.
        squares = [np.square(pixels[:, c] - mean[c], dtype=np.float64).sum() for c in range(len(mean))]
        return len(pixels), mean, np.array(squares)

    count, mean, squares = 0, np.zeros(1), np.zeros(1)
    for found in in_workers(moments, range(len(chosen)), config.workers):
        if found is None:
            continue
        pixels, its_mean, its_squares = found
        # Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
        total = count + pixels
        squares = squares + its_squares + np.square(its_mean - mean) * (count * pixels / total)
        mean = mean + (its_mean - mean) * (pixels / total)
        count = total
    if not count:
        raise UserError(f"{dataset.source}: none of {len(chosen)} pictures can be read; check the folder")
    deviation = np.sqrt(squares / count)
    return tuple(mean.tolist()), tuple(np.where(deviation > 0, deviation, 1.0).tolist())
