"""Keypoints: read from COCO files with every fault named, and moved with their picture."""

import json

import numpy as np
import pytest
import torch

from mrcnn_cli.config import validate
from mrcnn_cli.data.annotations import ImageAnnotations
from mrcnn_cli.data.keypoints import KeypointsConfig, left_and_right
from mrcnn_cli.data.loader import DataConfig, training_batches
from mrcnn_cli.data.transforms import Augment, Resize, training
from mrcnn_cli.errors import UserError

PAIRED = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
COCO = ["nose", *(f"{side}_{part}" for part in PAIRED for side in ("left", "right"))]
NAMES = ["snout", "left_ear", "right_ear"]


@pytest.fixture
def marked(files):
    """The small data set with three keypoints in two of its cells."""
    files.content["categories"][0] |= {"keypoints": NAMES, "skeleton": [[1, 2], [1, 3]]}
    files.annotation(11)["keypoints"] = [6, 5, 2, 9.5, 8, 1, 0, 0, 0]
    files.annotation(13)["keypoints"] = [2, 3, 2, 4, 5, 2, 3, 8, 2]
    return files


def read(files, **given):
    return files.read(keypoints=KeypointsConfig(**given))


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (
            COCO,
            [
                (f"left_{part}", f"right_{part}")
                for part in ["eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle"]
            ],
        ),
        (["snout", "leftear", "rightear", "tailbase"], [("leftear", "rightear")]),
        (["L_Eye", "R_Eye", "Nose", "paw_l", "paw_r"], [("L_Eye", "R_Eye"), ("paw_l", "paw_r")]),
        (["Front Left Paw", "Front Right Paw"], [("Front Left Paw", "Front Right Paw")]),
        (["left_eye", "nose", "leaf", "tail", "reaf"], []),
        ([], []),
    ],
)
def test_left_and_right_are_told_by_their_names(names, pairs):
    assert left_and_right(names) == tuple(pairs)


def test_names_skeleton_and_pairs_come_from_the_category(marked):
    keypoints = read(marked).keypoints
    assert keypoints.names == tuple(NAMES)
    assert keypoints.skeleton == (("snout", "left_ear"), ("snout", "right_ear"))
    assert keypoints.lines() == [(0, 1), (0, 2)]
    assert keypoints.flip_pairs == (("left_ear", "right_ear"),)
    assert keypoints.mirror().tolist() == [0, 2, 1]


def test_what_the_recipe_says_of_skeleton_and_pairs_takes_precedence(marked):
    keypoints = read(marked, skeleton=[["left_ear", "right_ear"]], flip_pairs=[]).keypoints
    assert keypoints.lines() == [(1, 2)]
    assert keypoints.mirror().tolist() == [0, 1, 2]


def test_keypoints_lie_in_the_middle_of_the_pixel_that_coco_names(marked):
    dataset = read(marked)
    assert dataset.warnings == []
    first, nothing, last = (dataset.annotations[index].keypoints for index in range(3))
    assert first[0].tolist() == [[6.5, 5.5, 2], [10, 8.5, 1], [0.5, 0.5, 0]]
    assert not first[1][:, 2].any()  # the annotation has none
    assert nothing.shape == (0, 3, 3)
    assert last[0].tolist() == [[2.5, 3.5, 2], [4.5, 5.5, 2], [3.5, 8.5, 2]]
    assert read(marked, offset=0).annotations[0].keypoints[0, 1].tolist() == [9.5, 8, 1]


def test_the_truth_for_evaluation_is_the_files(marked):
    truth = read(marked).coco()
    assert truth["categories"] == [{"id": 7, "name": "cell", "keypoints": NAMES, "skeleton": [[1, 2], [1, 3]]}]
    objects = {annotation["id"]: annotation for annotation in truth["annotations"]}
    assert objects[11]["keypoints"] == marked.annotation(11)["keypoints"]
    assert [objects[number]["num_keypoints"] for number in (11, 12, 13)] == [2, 0, 3]


def test_keypoints_that_nobody_asked_for_are_passed_over(marked):
    marked.annotation(11)["keypoints"] = ["faulty"]
    dataset = marked.read()
    assert dataset.keypoints is None
    assert dataset.names_keypoints
    assert dataset.annotations[0].keypoints is None
    assert "keypoints" not in dataset.coco()["annotations"][0]


def test_names_can_be_given_for_a_file_that_has_none(marked):
    del marked.content["categories"][0]["keypoints"]
    assert read(marked).keypoints is None
    dataset = read(marked, names=NAMES)
    assert dataset.keypoints.names == tuple(NAMES)
    assert dataset.annotations[0].keypoints[0, 0].tolist() == [6.5, 5.5, 2]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, 2, 2], "annotation 11: 'keypoints' has 3 numbers instead of 9, x, y and visibility of the 3 keypoints"),
        ([1, 2, 2] * 4, "annotation 11: 'keypoints' has 12 numbers instead of 9"),
        ([1, 2, 3] * 3, "annotation 11: keypoint 'snout' has the visibility 3; write 0 "),
        ([1, 2, 2, 1, 2, 2, 1, 2, 0.5], "annotation 11: keypoint 'right_ear' has the visibility 0.5; write 0 "),
        ([1, 2, -1] * 3, "annotation 11: keypoint 'snout' has the visibility -1"),
        ([1, 2, True] * 3, r"annotation 11: 'keypoints' is \[1, 2, True, .*write x, y and visibility of each"),
        ("1 2 2", "annotation 11: 'keypoints' is '1 2 2'; write x, y and visibility of each"),
        ([[1, 2, 2]] * 3, "annotation 11: 'keypoints' is .*write x, y and visibility of each"),
        ({"snout": [1, 2]}, "annotation 11: 'keypoints' is .*write x, y and visibility of each"),
    ],
)
def test_faulty_keypoints_are_named(marked, values, message):
    marked.annotation(11)["keypoints"] = values
    with pytest.raises(UserError, match=f"coco.json: {message}"):
        read(marked)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400])
def test_keypoints_that_are_not_finite_count_as_not_labelled(marked, value):
    marked.annotation(11)["keypoints"] = [6, value, 2, 9.5, 8, 1, value, value, value]
    dataset = read(marked)
    assert dataset.warnings == [
        "2 keypoints with values that are not finite taken as not labelled (first: annotation 11 of image a.png)"
    ]
    assert dataset.annotations[0].keypoints[0, :, 2].tolist() == [0, 1, 0]


def test_keypoints_outside_of_their_image_are_counted(marked):
    marked.annotation(11)["keypoints"] = [6, 5, 2, 70, 8, 2, -3, 8, 0]
    [warning] = read(marked).warnings
    assert warning.startswith("1 keypoint outside of its image not learnt (first: annotation 11 of image a.png")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keypoints": "snout"}, "category 'cell': 'keypoints' is 'snout'; write the list of their names"),
        ({"keypoints": ["snout", 2]}, r"category 'cell': 'keypoints' is \['snout', 2\]; write the list of their names"),
        ({"keypoints": ["ear", "tail", "ear"]}, "category 'cell': two keypoints have the name 'ear'"),
    ],
)
def test_faulty_names_are_named(marked, changes, message):
    marked.content["categories"][0] |= changes
    with pytest.raises(UserError, match=f"coco.json: {message}"):
        read(marked)


def test_categories_with_different_keypoints_are_refused(marked):
    marked.content["categories"].append({"id": 8, "name": "bead", "keypoints": ["middle"]})
    with pytest.raises(UserError, match="the categories 'cell' and 'bead' have different keypoints"):
        read(marked)


def test_a_category_without_keypoints_may_stand_beside_one_with_them(marked):
    marked.content["categories"].append({"id": 8, "name": "bead"})
    marked.object(15, 5, [1, 1, 9, 9], [[1, 1, 9, 1, 9, 9]], category_id=8)
    dataset = read(marked)
    assert dataset.annotations[2].keypoints[-1, :, 2].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("names", "how"), [(["a", "b", "c"], "not those"), (NAMES[::-1], "in another order")])
def test_a_file_with_other_names_than_the_models_is_refused(marked, names, how):
    with pytest.raises(UserError, match=rf"its keypoints \(snout, left_ear, right_ear\) are {how}"):
        read(marked, names=names)


@pytest.mark.parametrize("skeleton", [[[0, 1]], [[1, 4]], [[1, 2, 3]], [["snout", "left_ear"]], ["12"]])
def test_a_skeleton_that_does_not_fit_is_left_out_and_said(marked, skeleton):
    marked.content["categories"][0]["skeleton"] = skeleton
    dataset = read(marked)
    assert dataset.keypoints.skeleton == ()
    assert len(dataset.warnings) == 1
    assert "1 skeleton with a line to a keypoint that is not there left out" in dataset.warnings[0]


@pytest.mark.parametrize("skeleton", [None, [], {}])
def test_a_skeleton_may_be_missing(marked, skeleton):
    marked.content["categories"][0]["skeleton"] = skeleton
    dataset = read(marked)
    assert (dataset.keypoints.skeleton, dataset.warnings) == ((), [])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"names": ["a", "a"]}, "keypoints: names has a name twice"),
        ({"names": ["a", "b"], "flip_pairs": [["a", "c"]]}, "flip_pairs has 'c', which is not among names"),
        ({"names": ["a", "b"], "skeleton": [["c", "b"]]}, "skeleton has 'c', which is not among names"),
        ({"flip_pairs": [["a", "b"], ["b", "c"]]}, "flip_pairs has a name twice"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(table, message):
    with pytest.raises(UserError, match=message):
        validate(DataConfig, {"keypoints": table})


EVERYTHING = Augment(flip=0.5, vertical_flip=0.5, quarter_turns=True, scale=(0.7, 1.4), crop=48)


def one(keypoints):
    """An object that fills a picture of 60 x 80 pixels."""
    boxes, labels = np.array([[0, 0, 80, 60]], np.float32), np.zeros(1, np.int64)
    return ImageAnnotations(1, boxes, labels, np.zeros(1, bool), labels, None, np.array([keypoints], np.float32))


@pytest.mark.parametrize("seed", range(30))
def test_a_keypoint_stays_on_what_it_marks_and_left_is_left_in_a_mirror(seed):
    # Four patches of a colour each: right of the line from nose to tail (as a person looks along it) lies the right
    # one. A picture that is turned keeps that; one that is mirrored exchanges the two, and so must the labels.
    places = {"tail": (20, 30), "nose": (60, 30), "left": (40, 15), "right": (40, 45)}
    names = list(places)
    mirror = KeypointsConfig(names=names, flip_pairs=[["left", "right"]]).mirror()
    image = np.zeros((60, 80, 3), np.uint8)
    for place, (x, y) in enumerate(places.values()):
        image[y - 4 : y + 4, x - 4 : x + 4] = 60 * (place + 1)
    annotations = one([[x, y, 2] for x, y in places.values()])
    pixels, targets = training(
        image, annotations, Resize(scale=1.0), EVERYTHING, np.random.Generator(np.random.PCG64(seed)), mirror
    )
    height, width = pixels.shape[1:]
    [keypoints] = targets.keypoints
    shades = {}
    for name, (x, y, visibility) in zip(names, keypoints.tolist(), strict=True):
        if not visibility:
            continue
        assert 0 <= x <= width
        assert 0 <= y <= height
        shades[name] = pixels[0, min(int(y), height - 1), min(int(x), width - 1)].item()
    at = dict(zip(names, keypoints.tolist(), strict=True))
    if all(at[name][2] for name in ("tail", "nose", "left", "right")):
        along = np.subtract(at["nose"][:2], at["tail"][:2])
        across = np.subtract(at["right"][:2], at["left"][:2])
        assert along[0] * across[1] - along[1] * across[0] > 0  # the right side is where the right side belongs
    for name in ("tail", "nose"):
        if name in shades:
            assert shades[name] == pytest.approx(60 * (names.index(name) + 1), abs=40)
    assert all(shade >= 25 for shade in shades.values())  # each on one of the patches


def test_without_pairs_a_mirror_exchanges_nothing():
    annotations = one([[10, 20, 2], [30, 40, 1]])
    _, targets = training(
        np.zeros((60, 80, 3), np.uint8), annotations, Resize(scale=1.0), Augment(flip=1), np.random.default_rng(0)
    )
    assert targets.keypoints.tolist() == [[[70, 20, 2], [50, 40, 1]]]


def test_what_a_crop_cuts_away_is_not_learnt():
    annotations = one([[x, y, 2] for x in (1, 40, 79) for y in (1, 30, 59)])
    total = 0
    for seed in range(10):
        _, targets = training(
            np.zeros((60, 80, 3), np.uint8),
            annotations,
            Resize(scale=1.0),
            Augment(flip=0, crop=32),
            np.random.default_rng(seed),
        )
        seen = targets.keypoints[0, :, 2] > 0
        assert seen.sum() <= 4
        total += int(seen.sum())
        assert (targets.keypoints[0, ~seen] == 0).all()
        assert ((targets.keypoints[0, seen, :2] >= 0) & (targets.keypoints[0, seen, :2] <= 32)).all()
    assert total > 5


def test_the_loader_hands_keypoints_on_with_left_and_right_exchanged(marked):
    dataset = read(marked)
    config = DataConfig(resize={"scale": 1.0}, augment={"flip": 1.0}, workers=0)
    for _, targets in training_batches(dataset, config, batch_size=3, seed=0, steps=1):
        [target] = [target for target in targets if target.image_id == 1]
    assert target.keypoints.dtype == torch.float32
    assert target.keypoints[0].tolist() == [[53.5, 5.5, 2], [0, 0, 0], [50, 8.5, 1]]


def test_an_annotation_file_without_objects_has_no_keypoints_to_stumble_over(marked):
    marked.content["annotations"] = []
    dataset = read(marked)
    assert dataset.annotations[0].keypoints.shape == (0, 3, 3)
    assert json.loads(json.dumps(dataset.coco()))["annotations"] == []
