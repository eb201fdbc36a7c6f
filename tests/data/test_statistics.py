"""Means and deviations of channels, against all pixels in one array."""

import json

import numpy as np
import pytest

from mrcnn_cli.data.coco import Dataset
from mrcnn_cli.data.image import normalize
from mrcnn_cli.data.loader import DataConfig
from mrcnn_cli.data.statistics import channel_statistics
from mrcnn_cli.data.tiff import encode_tiff

SIZES = [(20, 30), (7, 50), (31, 8), (25, 25)]


@pytest.fixture
def pictures(tmp_path):
    """Makes a data set of pictures of many channels, and keeps them."""

    def make(kind, channels):
        generator = np.random.default_rng(0)
        images, entries = [], []
        for number, size in enumerate(SIZES, start=1):
            image = generator.normal(1000, 50, (*size, channels)) * np.arange(1, channels + 1) + 100 * number
            image = image.astype(kind) if kind != np.uint8 else (image / 50).clip(0, 255).astype(kind)
            image[:, :, -1] = 7
            images.append(image)
            (tmp_path / f"{number}.tif").write_bytes(encode_tiff(image))
            entries.append({"id": number, "file_name": f"{number}.tif", "height": size[0], "width": size[1]})
        content = {"images": entries, "annotations": [], "categories": [{"id": 1, "name": "cell"}]}
        (tmp_path / "coco.json").write_text(json.dumps(content))
        return Dataset.read(tmp_path, tmp_path / "coco.json"), images

    return make


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("mode", ["none", "percentile", "channel_percentile", "raw"])
def test_they_are_those_of_all_pixels_as_the_network_sees_them(pictures, kind, mode):
    dataset, images = pictures(kind, 4)
    mean, deviation = channel_statistics(dataset, DataConfig(normalize=mode, workers=0))
    pixels = np.concatenate([normalize(image, mode).reshape(-1, 4) for image in images]).astype(np.float64)
    assert mean == pytest.approx(pixels.mean(0).tolist(), rel=1e-9)
    assert deviation == pytest.approx(np.where(pixels.std(0) > 0, pixels.std(0), 1).tolist(), rel=1e-9)
    if mode == "raw":
        assert deviation[-1] == 1  # the channel that is the same everywhere


def test_they_are_the_same_bits_with_any_number_of_workers(pictures):
    dataset, _ = pictures(np.float32, 5)
    found = {channel_statistics(dataset, DataConfig(normalize="raw", workers=workers)) for workers in (0, 1, 3)}
    assert len(found) == 1


def test_of_many_pictures_some_are_looked_at_evenly(pictures):
    dataset, images = pictures(np.float32, 2)
    mean, _ = channel_statistics(dataset, DataConfig(normalize="raw", workers=0), most=2)
    pixels = np.concatenate([images[0].reshape(-1, 2), images[3].reshape(-1, 2)]).astype(np.float64)
    assert mean == pytest.approx(pixels.mean(0).tolist())
