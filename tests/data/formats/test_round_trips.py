"""There and back: bitmaps to the pixel, polygons to a thousandth, and what is lost is said."""

import numpy as np
import pytest

from mrcnn_cli.data.formats.collection import (
    Collection,
    Instance,
    Picture,
    encode,
    mask_instance,
    mask_iou,
    polygon_instance,
)
from mrcnn_cli.engine.prepare import collect, convert

HEIGHT, WIDTH = 80, 120
TARGETS = ("coco", "yolo", "voc", "labelme", "rle-csv")


def bitmap(*regions):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    for y1, y2, x1, x2, value in regions:
        mask[y1:y2, x1:x2] = value
    return mask


@pytest.fixture
def pictures(paint):
    """Holes, an island in a hole, several parts, slanted polygons, and an image without objects."""
    ring = mask_instance(
        "ring", bitmap((5, 35, 5, 35, 1), (10, 30, 10, 30, 0), (15, 20, 15, 22, 1), (18, 19, 18, 19, 0))
    )
    parts = mask_instance("cell", bitmap((40, 50, 5, 15, 1), (60, 61, 5, 6, 1), (61, 70, 6, 20, 1)))
    slanted = polygon_instance("cell", [[40.3, 6.1, 70.7, 12.9, 66.2, 33.4, 48.8, 30.5]])
    two = polygon_instance("cell", [[80, 8, 110.5, 9.5, 100, 30], [85.25, 40, 112, 44, 90, 60.75]])
    first = Picture(paint("pictures/a.png", HEIGHT, WIDTH), HEIGHT, WIDTH, [ring, parts, slanted, two], "train")
    empty = Picture(paint("pictures/b.png", HEIGHT, WIDTH), HEIGHT, WIDTH, [], "train")
    third = Picture(
        paint("pictures/c.png", HEIGHT, WIDTH), HEIGHT, WIDTH, [mask_instance("ring", bitmap((0, 80, 0, 120, 1)))]
    )
    third.split = "val"
    return [first, empty, third]


def there_and_back(pictures, target, tmp_path, classes=("cell", "ring")):
    written = convert(Collection(list(classes), pictures), tmp_path / "pictures", target, tmp_path / target)
    found = collect(tmp_path / target)
    assert found.format == target
    assert found.faults == []
    return written.notes, found.collection


@pytest.mark.parametrize("target", TARGETS)
def test_masks_come_back_from_every_format(pictures, target, tmp_path):
    notes, found = there_and_back(pictures, target, tmp_path)
    assert notes == []
    assert sorted(found.classes) == ["cell", "ring"]
    assert [(picture.path.name, picture.split, len(picture.instances)) for picture in found.pictures] == [
        (picture.path.name, picture.split, len(picture.instances)) for picture in pictures
    ]
    for before, after in zip(pictures, found.pictures, strict=True):
        for one, two in zip(before.instances, after.instances, strict=True):
            assert one.label == two.label
            overlap = mask_iou(one.segmentation, two.segmentation, HEIGHT, WIDTH)
            assert overlap == 1.0 if isinstance(one.segmentation, dict) else overlap >= 0.999
            assert two.box == pytest.approx(one.box, abs=1.0 if target in ("voc", "rle-csv") else 1e-4)


@pytest.mark.parametrize("target", ["coco", "labelme"])
def test_polygons_and_run_lengths_stay_what_they_are(pictures, target, tmp_path):
    _, found = there_and_back(pictures, target, tmp_path)
    for before, after in zip(pictures, found.pictures, strict=True):
        assert [one.segmentation for one in after.instances] == [one.segmentation for one in before.instances]


@pytest.mark.parametrize("target", ["coco", "voc", "labelme", "yolo"])
def test_boxes_without_masks_come_back(paint, target, tmp_path):
    instances = [Instance("cell", (3.25, 4, 20.5, 33)), Instance("ring", (0, 0, WIDTH, HEIGHT))]
    pictures = [Picture(paint("pictures/a.png", HEIGHT, WIDTH), HEIGHT, WIDTH, instances)]
    notes, found = there_and_back(pictures, target, tmp_path)
    assert notes == []
    for one, two in zip(instances, found.pictures[0].instances, strict=True):
        assert (two.label, two.segmentation) == (one.label, None)
        assert two.box == pytest.approx(one.box, abs=1e-5)


@pytest.mark.parametrize("target", ["coco", "voc", "labelme"])
def test_crowds_and_attributes_come_back(pictures, target, tmp_path):
    crowd = mask_instance("ring", bitmap((60, 75, 60, 110, 1)), crowd=True, attributes={"lot": "7"})
    pictures[0].instances.append(crowd)
    pictures[0].instances[0].attributes["truncated"] = True
    notes, found = there_and_back(pictures, target, tmp_path)
    assert notes == []
    back = found.pictures[0].instances
    assert [one.crowd for one in back] == [False] * 4 + [True]
    assert back[4].attributes["lot"] == "7"
    assert back[0].attributes == {"truncated": True}


def test_keypoints_come_back_from_coco_and_their_loss_is_reported_elsewhere(paint, tmp_path):
    one = Instance("cell", (1, 2, 30, 40), keypoints=[3.0, 4.0, 2.0, 0.0, 0.0, 0.0])
    pictures = [Picture(paint("pictures/a.png", HEIGHT, WIDTH), HEIGHT, WIDTH, [one])]
    _, found = there_and_back(pictures, "coco", tmp_path)
    assert found.pictures[0].instances[0].keypoints == one.keypoints
    for target in ("yolo", "voc", "labelme"):
        notes, _ = there_and_back(pictures, target, tmp_path)
        assert any("1 object with keypoints written without them" in line for line in notes), target


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("yolo", ["1 crowd or region to ignore left out", "1 object with attributes written without them"]),
        (
            "voc",
            ["1 object whose mask overlaps another's covers that one", "1 region to ignore whatever the class left"],
        ),
        ("labelme", ["1 object whose box is not that of its mask", "1 region to ignore whatever the class left out"]),
        ("rle-csv", ["1 crowd or region to ignore left out", "1 object without a mask left out"]),
        ("coco", ["1 region to ignore whatever the class written as a crowd of each class"]),
    ],
)
def test_what_a_format_cannot_hold_is_reported(pictures, target, words, tmp_path):
    pictures[0].instances += [
        Instance(None, (90, 60, 110, 79), crowd=True),
        Instance("cell", (2, 3, 20, 30)),
        Instance("ring", (0, 0, 60, 60), encode(bitmap((20, 32, 8, 12, 1))), attributes={"grade": 3}),
    ]
    notes = convert(Collection(["cell", "ring"], pictures), tmp_path / "pictures", target, tmp_path / "out").notes
    for word in words:
        assert any(word in line for line in notes), notes


def test_parts_that_overlap_are_one_object_in_yolo(paint, tmp_path):
    squares = [[10.0, 10, 40, 10, 40, 40, 10, 40], [30.0, 30, 60, 30, 60, 60, 30, 60]]
    pictures = [Picture(paint("pictures/a.png", HEIGHT, WIDTH), HEIGHT, WIDTH, [polygon_instance("cell", squares)])]
    _, found = there_and_back(pictures, "yolo", tmp_path, ["cell"])
    (back,) = found.pictures[0].instances
    assert mask_iou(back.segmentation, squares, HEIGHT, WIDTH) >= 0.999


def test_images_of_the_same_name_get_names_of_their_own(paint, tmp_path):
    pictures = [
        Picture(paint(f"pictures/{folder}/a.png", 20, 20), 20, 20, [Instance("cell", (1, 1, number, number))], "train")
        for number, folder in ((5, "x"), (6, "y"))
    ]
    for target in ("coco", "voc", "yolo", "labelme"):
        _, found = there_and_back(pictures, target, tmp_path, ["cell"])
        assert {(picture.path.name, picture.instances[0].box[2]) for picture in found.pictures} == {
            ("x_a.png", 5.0),
            ("y_a.png", 6.0),
        }


def test_images_are_linked_and_copied_on_demand(pictures, tmp_path):
    collection = Collection(["cell", "ring"], pictures)
    convert(collection, tmp_path / "pictures", "coco", tmp_path / "linked")
    convert(collection, tmp_path / "pictures", "coco", tmp_path / "copied", copy=True)
    linked, copied = (tmp_path / name / "images" / "train" / "a.png" for name in ("linked", "copied"))
    assert linked.is_symlink()
    assert linked.resolve() == pictures[0].path
    assert not copied.is_symlink()
    assert copied.read_bytes() == pictures[0].path.read_bytes()
