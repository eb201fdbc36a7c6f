"""The pictures of an evaluation: which are the worst, and what is drawn of them."""

import json

import numpy as np
import pytest

from mrcnn_cli.data.coco import Dataset
from mrcnn_cli.data.image import read_image
from mrcnn_cli.data.loader import SAMPLE
from mrcnn_cli.engine.comparison import worst, write_comparisons
from mrcnn_cli.engine.run import read_config
from mrcnn_cli.errors import UserError
from mrcnn_cli.evaluation import coco
from tests.engine.conftest import few_images


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Five images of the sample."""
    paths = few_images("val", 5, tmp_path_factory.mktemp("data"))
    return Dataset.read(paths["data.val.images"], paths["data.val.annotations"])


def truths(dataset):
    """What a perfect model finds in each image."""
    truth = dataset.coco()
    return [coco.truth_detections(truth, record.id, dataset.category_ids) for record in dataset.images]


def test_images_are_ordered_by_the_share_of_mistakes_and_then_by_their_number(dataset):
    perfect = truths(dataset)
    counts = [len(found) for found in perfect]
    assert min(counts) > 6
    nothing = [found.take(found.labels.new_zeros(0)) for found in perfect]
    assert worst(dataset, perfect) == [0, 1, 2, 3, 4]
    assert worst(dataset, nothing) == sorted(range(5), key=lambda index: -counts[index])
    some = [*perfect]
    some[3], some[1] = nothing[3], perfect[1].take(perfect[1].labels.new_tensor(range(1, counts[1])))
    assert worst(dataset, some) == [3, 1, 0, 2, 4]
    twice = [*some]  # each object found twice: half of the detections are false
    twice[4] = perfect[4].take(perfect[4].labels.new_tensor([*range(counts[4])] * 2))
    assert worst(dataset, twice) == [3, 4, 1, 0, 2]


def test_the_worst_are_drawn_with_what_is_certain_enough(dataset, tmp_path):
    results = []
    for record, found in zip(dataset.images, truths(dataset), strict=True):
        results += coco.results(found, record.id, dataset.category_ids, record.file_name)
    for entry in results:
        if entry["image_id"] == dataset.images[2].id:
            entry["score"] = 0.3
    config = read_config("nuclei_scratch")
    [path] = write_comparisons(tmp_path, dataset, config, json.loads(json.dumps(results)), 1)
    assert path == tmp_path / "pictures" / f"{dataset.images[2].path.stem}.png"
    drawn = read_image(path, 3)
    truth, prediction = (half.astype(int) for half in (drawn[60:, :600], drawn[60:, -600:]))
    assert np.ptp(truth, axis=2).max() > 100  # colours on the grey picture
    assert np.ptp(prediction, axis=2).max() < 10
    everything = config.model_copy(update={"predict": config.predict.model_copy(update={"score_threshold": 0.2})})
    paths = write_comparisons(tmp_path / "all", dataset, everything, results, 9)
    assert [path.stem for path in paths] == [record.path.stem for record in dataset.images]
    assert np.ptp(read_image(paths[2], 3)[60:, -600:].astype(int), axis=2).max() > 100
    assert (tmp_path / "all" / "overview.png").is_file()


def test_pictures_of_the_data_are_never_overwritten(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    record = json.loads((SAMPLE / "val.json").read_text())["images"][0]
    (folder / record["file_name"]).write_bytes((SAMPLE / "val" / record["file_name"]).read_bytes())
    truth = few_images("val", 1, tmp_path)["data.val.annotations"]
    with pytest.raises(UserError, match="would overwrite the picture itself; choose another --out"):
        write_comparisons(tmp_path, Dataset.read(folder, truth), read_config("nuclei_scratch"), [], 3)
