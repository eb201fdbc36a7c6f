"""What a data set is made of, counted."""

import json

import numpy as np
import pytest

from mrcnn_cli.data.coco import Dataset
from mrcnn_cli.data.tiff import encode_tiff
from mrcnn_cli.engine.data_check import find_source
from mrcnn_cli.engine.data_stats import distributions, pixels, read_tables, statistics
from mrcnn_cli.engine.pixels import fit_pixels
from mrcnn_cli.engine.run import read_config
from mrcnn_cli.errors import UserError
from tests.planted import Planted


@pytest.fixture
def data(tmp_path):
    data = Planted(tmp_path, per_split=4)
    data.add(1, bbox=[0, 0, 32, 8], area=256, segmentation=[[0, 0, 32, 0, 32, 8, 0, 8]])
    data.add(1, iscrowd=1)
    data.drop_objects(3)
    return data


def test_objects_images_and_sizes_are_counted(data):
    tables = read_tables(find_source(data.write()))
    found = statistics(tables, read_config("nuclei"))
    train = found["splits"]["train"]
    assert (train["images"], train["empty_images"], train["objects"], train["crowds"]) == (4, 1, 10, 1)
    assert train["masks"] == 11
    assert train["size"]["median"] == 16
    assert train["aspect"] == {"min": 0.25, "p5": 0.588, "median": 1, "p95": 1, "max": 1}
    assert train["objects_per_image"]["mean"] == 2.5
    assert found["splits"]["val"]["objects"] == 12
    assert found["classes"]["square"]["objects"] == 8
    assert found["classes"]["square"]["images"] == 7
    assert found["input"]["size"]["median"] == 32  # enlarged twice by that recipe
    assert found["input"]["medium"] == 1.0
    assert 0 < found["anchors"]["recipe"]["mean_iou"] <= 1


def test_a_figure_gets_the_values_one_by_one(data):
    values = distributions(read_tables(find_source(data.write())))
    assert values["classes"] == {"square": 8, "disc": 7, "run": 7}
    assert np.sort(values["objects_per_image"]).tolist() == [0, 3, 3, 3, 3, 3, 3, 4]
    assert len(values["size"]) == len(values["aspect"]) == 22


def test_without_objects_there_are_no_numbers(data):
    for content in data.content.values():
        content["annotations"] = []
    found = statistics(read_tables(find_source(data.write())), read_config("nuclei"))
    assert found["anchors"] is None
    assert found["splits"]["train"]["size"]["median"] is None


def test_a_file_that_cannot_be_read_is_named(data):
    data.write()
    (data.root / "val.json").write_text("{")
    with pytest.raises(UserError, match="val.json"):
        read_tables(find_source(data.root))


@pytest.fixture
def deep(tmp_path):
    """Makes a data set of four pictures of this type and of so many channels."""

    def make(kind, channels):
        generator = np.random.default_rng(0)
        entries = []
        for number in range(1, 5):
            image = generator.normal(100, 20, (20, 30, channels)) * np.arange(1, channels + 1) / channels + number
            (tmp_path / f"{number}.tif").write_bytes(encode_tiff(image.clip(0, 255).astype(kind)))
            entries.append({"id": number, "file_name": f"{number}.tif", "height": 20, "width": 30})
        annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}
        content = {"images": entries, "annotations": [annotation], "categories": [{"id": 1, "name": "cell"}]}
        (tmp_path / "all.json").write_text(json.dumps(content))
        return find_source(None, [tmp_path], [tmp_path / "all.json"])

    return make


def pixels_of(source, *overrides, workers=0):
    done = []
    found = pixels(read_tables(source)[0], read_config("nuclei", overrides), workers, lambda *it: done.append(it))
    return found, done


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_channels_are_measured_as_training_would_measure_them(deep, kind, channels, order):
    source = deep(kind, channels)
    overrides = ["data.normalize=raw", f"model.pixels.channels={order}"]
    found, done = pixels_of(source, *overrides, workers=2)
    config = read_config("nuclei", [*overrides, "model.pixels.mean=auto", "model.pixels.deviation=auto"])
    split = source.splits["all"]
    _, expected, _ = fit_pixels(config.data, config.model.pixels, Dataset.read(split.images, split.annotations))
    assert (found["mean"], found["deviation"]) == (expected.mean, expected.deviation)
    assert len(found["mean"]) == max(channels, 3)
    assert done == [(place, 4) for place in range(1, 5)]
    assert (found["pictures"], found["left_out"], found["split"], found["channels"]) == (4, 0, "all", order)
    if channels == 5:
        ascending = found["mean"] if order == "rgb" else found["mean"][::-1]
        assert list(ascending) == sorted(ascending)


def test_pictures_that_cannot_be_read_are_left_out_of_the_measure_and_counted(deep, tmp_path):
    source = deep(np.uint8, 5)
    whole, _ = pixels_of(source)
    (tmp_path / "1.tif").unlink()
    (tmp_path / "3.tif").write_bytes(encode_tiff(np.zeros((20, 30, 4), np.uint8)))
    found, _ = pixels_of(source)
    assert (found["pictures"], found["left_out"]) == (2, 2)
    assert found["mean"] != whole["mean"]
    for number in (2, 3, 4):
        (tmp_path / f"{number}.tif").unlink()
    assert pixels_of(source)[0] is None


def test_a_depth_that_would_be_lost_is_told(deep):
    source = deep(np.uint16, 1)
    [warning] = pixels_of(source, "data.normalize=none")[0]["warnings"]
    assert "would become nearly black" in warning
    assert pixels_of(source, "data.normalize=percentile")[0]["warnings"] == []
