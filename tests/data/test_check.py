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
    content["annotations"].append(content["annotations"][1] | {"id": 99, "category_id": 1})
    assert found_in(content)[1] == []
    content["annotations"].append(content["annotations"][1] | {"id": 100})
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
        *([5] * 9, [10**400, 1, 2] * 3, [float("nan")] * 9, ["a"] * 3, {"size": None, "counts": [1]}),
    ]
)
KEYS = {
    "images": ["id", "file_name", "height", "width"],
    "annotations": ["id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "keypoints"],
    "categories": ["id", "name", "keypoints", "skeleton"],
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


def with_keypoints(tmp_path, *names, **category):
    """Three images whose squares have these keypoints, all at 5, 5 and visible."""
    content = content_of(tmp_path)
    content["categories"][0].update(keypoints=list(names), skeleton=[], **category)
    for annotation in content["annotations"][::3]:
        annotation.update(keypoints=[5, 5, 2] * len(names), num_keypoints=len(names))
    return content


def said(content, fault):
    tables, findings = found_in(content)
    contents, _ = repaired(tables, findings)
    return [finding.words for finding in findings if finding.fault == fault], contents[0]


def test_a_file_with_keypoints_may_have_crowds_and_objects_without_them(tmp_path):
    content = with_keypoints(tmp_path, "nose", "left_eye", "right_eye")
    del content["annotations"][0]["keypoints"], content["annotations"][0]["num_keypoints"]
    content["annotations"][3] |= {"keypoints": [0] * 9, "num_keypoints": 0, "iscrowd": 1}
    assert found_in(content)[1] == []


@pytest.mark.parametrize(
    ("names", "lone"),
    [
        (["snout", "leftear", "rightear"], ""),
        (["snout", "leftear", "tail"], "leftear"),
        (["L_eye", "R_eye", "paw_r"], "paw_r"),
        (["Front Left Paw", "Hind Right Paw"], "Front Left Paw, Hind Right Paw"),
        (["upright", "rlimb", "collar", "bright_l2"], ""),
    ],
)
def test_a_keypoint_of_one_side_wants_its_counterpart(tmp_path, names, lone):
    words, _ = said(with_keypoints(tmp_path, *names), "keypoint-one-sided")
    assert words == ([f"category 'square': no counterpart on the other side for {lone}"] if lone else [])


@pytest.mark.parametrize(
    ("given", "fault", "words", "left"),
    [
        ([1, 2, 2], "keypoints-malformed", "'keypoints' has 3 instead of 6 numbers", [0] * 6),
        ([1, 2, 2, 3, "4", 2], "keypoints-malformed", "'keypoints' is [1, 2, 2, 3, '4', 2] instead of 6", [0] * 6),
        ("none", "keypoints-malformed", "'keypoints' is 'none'", [0] * 6),
        ([1, 2, 0.5, 3, 4, -1], "keypoint-visibility", "keypoint 'a', 'b' has the visibility 0.5", None),
        ([1, 2, 2, 10**400, 4, 2], "keypoint-not-finite", "keypoint 'b' has values", [1, 2, 2, 0, 0, 0]),
        ([1, 2, float("nan"), 3, 4, 1], "keypoint-not-finite", "keypoint 'a' has values", [0, 0, 0, 3, 4, 1]),
        ([65.5, 2, 1, 3, 4, 2], "keypoint-outside", "lies at 65.5, 2, the image is 64 x 64", [0, 0, 0, 3, 4, 2]),
        ([1, -2, 1, 3, 4, 2], "keypoint-outside", "keypoint 'a' lies at 1, -2", [0, 0, 0, 3, 4, 2]),
    ],
)
def test_faulty_points_are_told_and_those_that_can_be_are_taken_as_not_labelled(tmp_path, given, fault, words, left):
    content = with_keypoints(tmp_path, "a", "b")
    content["annotations"][0]["keypoints"] = given
    [found], mended = said(content, fault)
    assert words in found
    annotation = mended["annotations"][0]
    assert annotation["keypoints"] == (given if left is None else left)
    assert annotation["num_keypoints"] == sum(visibility > 0 for visibility in annotation["keypoints"][2::3])


def test_points_at_the_edge_or_not_labelled_are_not_outside(tmp_path):
    content = with_keypoints(tmp_path, "a", "b")
    content["annotations"][0] |= {"keypoints": [-0.9, 64.9, 2, -70, 900, 0], "num_keypoints": 1}
    assert found_in(content)[1] == []


@pytest.mark.parametrize("given", [None, 1, 3, "2", True])
def test_a_number_of_keypoints_that_is_not_theirs_is_counted_anew(tmp_path, given):
    content = with_keypoints(tmp_path, "a", "b")
    content["annotations"][0]["num_keypoints"] = given
    [words], mended = said(content, "keypoint-count-disagrees")
    assert words == f"'num_keypoints' is {given!r}, 2 are labelled"
    assert mended["annotations"][0]["num_keypoints"] == 2


@pytest.mark.parametrize(("names", "words"), [("a", "is 'a' instead of the list"), (["a", ""], "instead of the list")])
def test_names_that_are_none_are_told_once_and_their_annotations_left_in_peace(tmp_path, names, words):
    content = with_keypoints(tmp_path, "a", "b")
    content["categories"][0]["keypoints"] = names
    findings = found_in(content)[1]
    assert [finding.fault for finding in findings] == ["keypoint-names"]
    assert words in findings[0].words


def test_another_order_of_keypoints_in_another_split_is_told_with_both(tmp_path):
    (tmp_path / "other").mkdir()
    content, other = with_keypoints(tmp_path, "a", "b"), with_keypoints(tmp_path / "other", "b", "a")
    splits = [Split("train", Path(), Path("train.json"), content), Split("val", Path(), Path("val.json"), other)]
    [finding] = annotation_findings(splits)[1]
    assert (finding.fault, finding.source) == ("keypoints-differ", "val.json")
    assert finding.words == "category 'square' has the keypoints b, a; category 'square' of train has a, b"


def test_a_skeleton_keeps_its_sound_lines(tmp_path):
    content = with_keypoints(tmp_path, "a", "b")
    content["categories"][0]["skeleton"] = [[1, 2], [2, 3], [0, 1], [1], "x"]
    [words], mended = said(content, "skeleton-malformed")
    assert words == "category 'square': its skeleton has the line [2, 3], but there are keypoints 1 to 2"
    assert mended["categories"][0]["skeleton"] == [[1, 2]]
