"""The search for faults: each that is planted is found, a clean data set has none, and repairs mend."""

from pathlib import Path

import pytest
from PIL import Image

from mrcnn_cli.data.check.faults import FAULTS
from mrcnn_cli.data.coco import Dataset
from mrcnn_cli.data.keypoints import KeypointsConfig
from mrcnn_cli.engine.data_check import check, find_source, fix
from mrcnn_cli.engine.run import read_config
from mrcnn_cli.errors import UserError
from tests import panoptic_shapes
from tests.planted import PLANTS, Planted

CONFIG = read_config("mask_rcnn_r18_fpn")
BY_HAND = {name for name, fault in FAULTS.items() if fault.remedy is None}


def report_of(data, **settings):
    return check(find_source(data.write()), CONFIG, workers=0, **settings)


@pytest.fixture
def data(tmp_path):
    return Planted(tmp_path, per_split=120)  # an image for each fault


def test_a_clean_data_set_has_no_fault(data):
    assert report_of(data).findings == []


def test_there_is_a_plant_for_every_fault():
    assert set(PLANTS) == set(FAULTS)


def test_every_fault_is_explained_in_the_documents():
    text = (Path(__file__).parents[2] / "docs" / "checking_data.md").read_text()
    assert not [name for name in FAULTS if f"`{name}`" not in text]


@pytest.mark.parametrize("fault", PLANTS)
def test_a_planted_fault_is_found_where_it_was_planted(tmp_path, fault):
    data = Planted(tmp_path, per_split=100 if fault == "class-imbalance" else 12)
    image, annotation = PLANTS[fault](data, 7)
    found = [finding for finding in report_of(data).findings if finding.fault == fault]
    assert found
    assert all(finding.source.endswith(".json") and finding.words for finding in found)
    if image is not None:
        assert image in {finding.image for finding in found}
    if annotation is not None:
        assert annotation in {finding.annotation_id for finding in found}


def test_all_faults_planted_together_are_all_found_and_mending_leaves_those_for_people(data, tmp_path):
    for place, plant in enumerate(PLANTS.values()):
        plant(data, 3 + 2 * place)
    before = report_of(data)
    assert set(before.by_fault()) == set(FAULTS)
    sources = {path: path.read_bytes() for path in tmp_path.glob("*.json")}

    mended, left = fix(before, tmp_path / "mended")

    assert set(left.by_fault()) <= BY_HAND
    assert set(mended) == set(FAULTS) - BY_HAND
    assert {path: path.read_bytes() for path in tmp_path.glob("*.json")} == sources
    again = check(find_source(tmp_path / "mended"), CONFIG, workers=0)
    assert set(again.by_fault()) == set(left.by_fault()) - {"unreadable-file"}


def test_a_mended_data_set_can_be_read_where_the_faulty_one_could_not(data, tmp_path):
    mendable = [fault for fault in PLANTS if fault not in BY_HAND]
    for place, fault in enumerate(mendable):
        PLANTS[fault](data, 3 + 2 * place)
    report = report_of(data)
    with pytest.raises(UserError):
        Dataset.read(tmp_path / "train", tmp_path / "train.json")
    fix(report, tmp_path / "mended")
    dataset = Dataset.read(tmp_path / "train", tmp_path / "mended" / "train.json", keypoints=KeypointsConfig())
    assert dataset.warnings == []
    assert dataset.has_masks


def test_of_a_panoptic_file_the_things_are_checked_with_their_masks(tmp_path):
    images, path = panoptic_shapes.write(tmp_path, 3)
    report = check(find_source(None, [images], [path]), CONFIG, workers=0)
    assert len(report.tables[0]) == 9
    assert len(report.tables[0].encodings) == 9
    assert report.counts["error"] == 0
    Image.new("RGB", (80, 64)).save(path.with_suffix("") / "2.png")
    [found] = check(find_source(None, [images], [path]), CONFIG, workers=0).by_fault()["unreadable-file"]
    assert "2.png: has no pixels of segment" in found.words
