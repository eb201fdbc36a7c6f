"""What a data set is made of, counted."""

import numpy as np
import pytest

from mrcnn_cli.engine.data_check import find_source
from mrcnn_cli.engine.data_stats import distributions, read_tables, statistics
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
