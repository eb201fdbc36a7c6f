"""The parts of the search for faults, each against a plain loop or a case of its own."""

import copy
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mrcnn_cli.data.check import annotation_findings
from mrcnn_cli.data.check.faults import FAULTS, Finding, ordered
from mrcnn_cli.data.check.geometry import crossing, overlapping, polygon_areas
from mrcnn_cli.data.check.pictures import look, perceptual_hash
from mrcnn_cli.data.check.repair import repaired
from mrcnn_cli.data.check.tables import Polygons, Split, read_table
from mrcnn_cli.data.image import describe, preview, read_image
from tests.planted import Planted


def polygons_of(shapes):
    counts = np.array([len(shape) for shape in shapes])
    ends = counts.cumsum()
    order = np.arange(len(shapes))
    return Polygons(np.concatenate(shapes).astype(float), ends - counts, ends, order, order)


def crosses(one, other):
    """Whether two segments cross in a point inside both."""

    def side(a, b, c):
        return np.sign((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]))

    (a, b), (c, d) = one, other
    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0


def crosses_itself(shape):
    edges = list(zip(shape, np.roll(shape, -1, axis=0), strict=True))
    return any(
        crosses(edges[i], edges[j])
        for i, j in itertools.combinations(range(len(edges)), 2)
        if 1 < j - i < len(edges) - 1
    )


@given(st.lists(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=3, max_size=9), min_size=1))
@settings(deadline=None, max_examples=150)
def test_crossing_edges_are_those_that_a_plain_loop_finds(shapes):
    shapes = [np.array(shape, float) for shape in shapes]
    expected = [place for place, shape in enumerate(shapes) if crosses_itself(shape)]
    assert crossing(polygons_of(shapes)).tolist() == expected


def test_crossings_are_found_across_the_portions_in_which_they_are_looked_for(monkeypatch):
    monkeypatch.setattr("mrcnn_cli.data.check.geometry.CHUNK", 7)
    bow, square = np.array([[0, 0], [4, 4], [4, 0], [0, 4]]), np.array([[0, 0], [4, 0], [4, 4], [0, 4]])
    shapes = [bow, square, square, bow, square, bow]
    assert crossing(polygons_of(shapes)).tolist() == [0, 3, 5]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-5, 5), st.integers(0, 4)), max_size=30))
def test_overlapping_intervals_are_those_that_a_plain_loop_finds(intervals):
    group, low, length = (np.array([row[i] for row in intervals], float) for i in range(3))
    high = low + length
    expected = {
        (i, j)
        for i, j in itertools.combinations(range(len(intervals)), 2)
        if group[i] == group[j] and low[i] <= high[j] and low[j] <= high[i]
    }
    found = [
        tuple(sorted(pair))
        for left, right in overlapping(group.astype(int), low, high)
        for pair in zip(left.tolist(), right.tolist(), strict=True)
    ]
    assert len(found) == len(set(found))
    assert set(found) == expected


def test_areas_are_those_of_the_shoelace_formula_far_from_the_corner_too():
    square = np.array([[0, 0], [0.5, 0], [0.5, 0.5], [0, 0.5]])
    triangle = np.array([[0, 0], [0, 3], [4, 0]])
    assert polygon_areas(polygons_of([square + 1e6, triangle])).tolist() == pytest.approx([0.25, 6], abs=1e-9)


def content_of(tmp_path, per_split=3):
    return Planted(tmp_path, per_split=per_split).content["train"]


def found_in(content):
    tables, findings = annotation_findings([Split("train", Path(), Path("train.json"), content)])
    return tables, findings


def test_two_images_or_categories_of_one_id_are_named(tmp_path):
    content = content_of(tmp_path)
    content["images"][1]["id"] = 1
    content["categories"][1]["id"] = 1
    words = [finding.words for finding in found_in(content)[1] if finding.fault == "duplicate-id"]
    assert words == ["categories 'square' and 'disc' have the id 1", "images 1.png and 2.png have the id 1"]


@pytest.mark.parametrize(("parts", "area"), [(2, 256), (1, 256)])
def test_the_area_of_parts_that_overlap_is_counted_once(tmp_path, parts, area):
    content = content_of(tmp_path)
    annotation = content["annotations"][0]
    annotation["segmentation"] = annotation["segmentation"] * parts
    annotation["area"] = area
    assert found_in(content)[1] == []


@pytest.mark.parametrize("area", [None, float("nan"), "256", True])
def test_an_area_that_is_none_is_computed(tmp_path, area):
    content = content_of(tmp_path)
    content["annotations"][0]["area"] = area
    tables, findings = found_in(content)
    assert [finding.words for finding in findings] == ["has no area, that of its mask is 256"]
    assert repaired(tables, findings)[0][0]["annotations"][0]["area"] == 256


def test_objects_of_other_classes_at_one_place_are_no_repetition(tmp_path):
    content = content_of(tmp_path)
    content["annotations"].append(content["annotations"][0] | {"id": 99, "category_id": 2})
    assert found_in(content)[1] == []
    content["annotations"].append(content["annotations"][0] | {"id": 100})
    assert [(f.fault, f.annotation_id) for f in found_in(content)[1]] == [("duplicate-annotation", 100)]


def test_findings_come_errors_first():
    faults = ["image-empty", "box-disagrees", "leaked-image", "malformed-entry"]
    findings = ordered(Finding(fault, "train", "a.json", "") for fault in faults)
    assert [finding.fault for finding in findings] == [
        "malformed-entry",
        "leaked-image",
        "box-disagrees",
        "image-empty",
    ]


ODD = st.sampled_from(
    [
        *(None, "", "x", True, float("nan"), float("inf"), -1, 0, 1.5, 10**400, 2**63, {}, [], [[]], [None], [1, 2]),
        *([0, 0, 5, 5], [float("nan")] * 4, [[1, 2, 3, 4, 5, 6]], [["a"] * 6], [[1e300] * 6]),
        *({"size": [64, 64]}, {"size": [64, 64], "counts": "!"}, {"size": [64, 64], "counts": [4096]}),
        {"size": None, "counts": [1]},
    ]
)
KEYS = {
    "images": ["id", "file_name", "height", "width"],
    "annotations": ["id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"],
    "categories": ["id", "name"],
}
PLACES = st.sampled_from([(table, key) for table, keys in KEYS.items() for key in keys])


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return content_of(tmp_path_factory.mktemp("clean"))


@given(changes=st.lists(st.tuples(PLACES, st.integers(0, 8), ODD, st.booleans()), min_size=1, max_size=6))
@settings(deadline=None, max_examples=300)
def test_whatever_stands_in_the_file_is_a_fault_and_never_a_crash(clean, changes):
    content = copy.deepcopy(clean)
    for (table, key), place, value, remove in changes:
        entry = content[table][place % len(content[table])]
        if remove:
            entry.pop(key, None)
        else:
            entry[key] = copy.deepcopy(value)
    tables, findings = found_in(content)
    assert all(finding.fault in FAULTS and finding.words for finding in findings)
    contents, _ = repaired(tables, findings)
    assert contents[0].keys() == content.keys()


def test_tables_hold_what_makes_sense(tmp_path):
    content = content_of(tmp_path)
    content["annotations"][0]["bbox"] = [float("nan")] * 4
    table, findings = read_table(Split("train", Path(), Path("a.json"), content))
    assert [finding.fault for finding in findings] == ["box-not-finite"]
    assert len(table) == 9
    assert np.isnan(table.bboxes[0]).all()
    assert table.mask_boxes()[:3].tolist() == [[2, 5, 18, 21], [22, 5, 38, 21], [42, 5, 58, 21]]


def test_a_hash_survives_size_compression_and_exposure_but_not_another_picture(tmp_path):
    random = np.random.default_rng(0)
    scene = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8)).resize((320, 240), Image.Resampling.BICUBIC)
    scene.save(tmp_path / "a.png")
    scene.resize((200, 150)).point(lambda value: value * 0.6 + 30).save(tmp_path / "b.jpg", quality=40)
    Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8)).resize((320, 240)).save(tmp_path / "c.png")
    same, changed, other = (look(tmp_path / name).hash for name in ("a.png", "b.jpg", "c.png"))
    assert same @ changed > 0.99
    assert abs(same @ other) < 0.5
    assert not perceptual_hash(np.full((30, 40, 3), 7, np.uint8)).any()


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (7, 300), (15, 16), (17, 33)])
def test_pictures_of_any_size_have_a_hash(size):
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    assert np.linalg.norm(perceptual_hash(image)) == pytest.approx(float(size != (1, 1)), abs=1e-5)


@pytest.mark.parametrize("kind", ["jpg", "png", "tif"])
def test_a_preview_is_the_upright_picture_made_small(tmp_path, kind):
    tag = Image.Exif()
    tag[0x0112] = 6
    gradient = np.linspace(0, 255, 400 * 200 * 3).reshape(200, 400, 3).astype(np.uint8)
    Image.fromarray(gradient).save(tmp_path / f"a.{kind}", exif=tag)
    small = preview(tmp_path / f"a.{kind}", 50)
    assert small.shape == (50, 25, 3)
    whole = read_image(tmp_path / f"a.{kind}").astype(float)
    assert np.abs(whole.reshape(50, 8, 25, 8, 3).mean(axis=(1, 3)) - small).max() < 12
    assert describe(tmp_path / f"a.{kind}").orientation == 6


@pytest.mark.parametrize(
    ("mode", "words"), [("L", "8-bit grey"), ("RGB", "8-bit RGB"), ("I;16", "16-bit grey"), ("1", "1-bit grey")]
)
def test_depth_and_channels_are_told_in_words(tmp_path, mode, words):
    Image.new(mode, (9, 5)).save(tmp_path / "a.png")
    found = describe(tmp_path / "a.png")
    assert (found.pixels, found.size, found.orientation) == (words, (5, 9), 1)
