"""Files that other people's tools wrote: the same pictures in many formats must come out equal."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from mrcnn_cli.data.formats.collection import to_bitmap

VOC = "converters/voc100_many_formats"
HALF_HUNDREDTH = 0.005  # OpenImages' and YOLO's numbers have few digits: of 500 pixels, this much


@pytest.fixture
def truth(shared, read):
    return read(shared / VOC / "all100_pascalvoc", shared / VOC / "images").boxes()


@pytest.mark.parametrize(
    ("folder", "format", "images"),
    [
        ("all100_coco_format_v1", "coco", 100),
        ("all100_coco_format_v2", "coco", 100),
        ("all100_cvat_format", "cvat", 100),
        ("imagenet", "voc", 12),
        ("pascalvoc", "voc", 12),
        ("labelme", "labelme", 12),
        ("all100_yolo_format", "yolo", 12),
        ("all100_openimages_format", "openimages", 12),
    ],
)
def test_the_same_voc_images_come_out_equal_box_for_box(shared, read, truth, folder, format, images):
    found = read(shared / VOC / folder, shared / VOC / "images")
    assert found.format == format
    boxes = found.boxes()
    assert len(boxes) == images
    for name, mine in boxes.items():
        assert [entry[0] for entry in mine] == [entry[0] for entry in truth[name]], name
        difference = np.array([entry[1:] for entry in mine]) - np.array([entry[1:] for entry in truth[name]])
        exact = format not in ("yolo", "openimages")
        assert np.abs(difference).max() <= (0 if exact else HALF_HUNDREDTH), name


def test_images_that_are_not_there_are_named(shared, read):
    found = read(shared / VOC / "all100_pascalvoc", shared / VOC / "images")
    assert len(found.faults) == 88
    assert all("no such image" in line for line in found.faults)


def test_balloons_from_via_equal_their_coco_file(shared, read):
    via = read(shared / "converters" / "via_original", classes=("balloon",))
    coco = read(shared / "balloon")
    assert (via.format, coco.format) == ("via", "coco")
    truth = {picture.path.name: picture for picture in coco.pictures if picture.split == "val"}
    assert len(via.pictures) == 4
    for picture in via.pictures:
        other = truth[picture.path.name]
        assert (picture.height, picture.width) == (other.height, other.width)
        assert [one.segmentation for one in picture.instances] == [one.segmentation for one in other.instances]
        assert [one.box for one in picture.instances] == [one.box for one in other.instances]
        assert {one.label for one in picture.instances} == {"balloon"}


def test_nuclei_from_mask_files_equal_their_run_lengths_to_the_pixel(shared, read):
    found = read(shared / "converters" / "dsb_mask_per_instance")
    assert (found.format, len(found.pictures)) == ("instance-masks", 5)
    truth = {}
    for split in ("train", "val"):
        content = json.loads((shared / "nuclei_dsb2018" / f"{split}.json").read_text())
        names = {entry["id"]: entry["file_name"].removesuffix(".png") for entry in content["images"]}
        for entry in content["annotations"]:
            truth.setdefault(names[entry["image_id"]], []).append(entry["segmentation"])
    for picture in found.pictures:
        mine = sorted(one.segmentation["counts"].decode() for one in picture.instances)
        assert mine == sorted(entry["counts"] for entry in truth[picture.path.stem[:16]]), picture.path.name


def test_label_maps_equal_the_run_lengths_of_the_same_nuclei(shared, read):
    found = read(shared / "nuclei_dsb2018" / "val")
    assert found.format == "label-maps"
    content = json.loads((shared / "nuclei_dsb2018" / "val.json").read_text())
    names = {entry["id"]: entry["file_name"] for entry in content["images"]}
    truth = sorted((names[entry["image_id"]], entry["segmentation"]["counts"]) for entry in content["annotations"])
    mine = [(picture.path.name, one.segmentation) for picture in found.pictures for one in picture.instances]
    assert sorted((name, segmentation["counts"].decode()) for name, segmentation in mine) == truth


def test_panoptic_segments_equal_their_detection_format(shared, read):
    folder = shared / "converters" / "panopticapi_sample"
    panoptic = read(folder / "panoptic_examples.json", stuff=True)
    coco = read(folder / "panoptic_coco_detection_format.json")
    assert panoptic.format == "panoptic"
    for mine, other in zip(panoptic.pictures, coco.pictures, strict=True):
        assert sorted((one.label, one.segmentation["counts"]) for one in mine.instances) == sorted(
            (one.label, one.segmentation["counts"]) for one in other.instances
        )
    assert len(read(folder / "panoptic_examples.json").instances) < len(panoptic.instances)


def test_yolo_polygons_cover_the_panoptic_segments_of_the_same_images(shared, read):
    folder = shared / "converters" / "yolo_seg_and_panoptic"
    yolo = read(folder / "yolo")
    panoptic = {
        picture.path.stem: picture for picture in read(folder / "panoptic", folder / "yolo" / "images").pictures
    }
    assert {picture.split for picture in yolo.pictures} == {"train", "val"}
    overlaps = []
    for picture in yolo.pictures:
        other = panoptic[picture.path.stem]
        assert len(picture.instances) == len(other.instances)
        for one in picture.instances:
            mask = to_bitmap(one.segmentation, picture.height, picture.width)
            same = [two for two in other.instances if two.label == one.label]
            truths = [coco_mask.decode(two.segmentation).astype(bool) for two in same]
            overlaps.append(max((mask & truth).sum() / (mask | truth).sum() for truth in truths))
    assert np.median(overlaps) > 0.85


def test_cityscapes_kitti_cvat_and_voc_layouts_are_read(shared, read):
    folder = shared / "converters" / "small_layouts"
    cityscapes = read(folder / "cityscapes_dataset" / "train_dataset")
    assert [(one.label, one.box, one.crowd) for one in cityscapes.instances][:3] == [
        ("truck", (2, 0, 3, 1), False),
        ("truck", (3, 0, 5, 1), False),
        ("train", (0, 0, 2, 1), False),
    ]
    kitti = read(folder / "kitti_dataset" / "kitti_3d")
    assert [(one.label, one.crowd) for one in kitti.instances] == [("Truck", False), ("Car", False), (None, True)]
    assert {picture.split for picture in read(folder / "kitti_dataset" / "kitti_3d_with_subset").pictures} == {
        "train",
        "val",
        "test",
    }
    cvat = read(folder / "cvat_dataset" / "for_images" / "export_project")
    assert sorted((picture.split, picture.path.parent.name, picture.path.name) for picture in cvat.pictures) == [
        (split, name, file)
        for split, name in (("test", "Test"), ("train", "Train"), ("val", "Validation"))
        for file in ("img0.jpg", "img1.jpg")
    ]
    assert cvat.reading.classes == ["label1", "label2"]
    voc = read(folder / "voc_dataset" / "voc_dataset1")
    (cat, person) = voc.instances
    assert cat.attributes == {"truncated": True}
    assert np.array_equal(
        to_bitmap(cat.segmentation, 10, 20),
        np.asarray(Image.open(folder / "voc_dataset/voc_dataset1/SegmentationObject/2007_000001.png"))[..., 0] > 0,
    )
    assert person.attributes["parts"] == [{"name": "head", "box": [5.5, 6, 7.5, 8]}]


def test_coco_subsets_keep_ids_crowds_and_keypoints(shared, read):
    found = read(shared / "coco_free")
    content = json.loads(next((shared / "coco_free").rglob("instances_train2017.json")).read_text())
    train = [picture for picture in found.pictures if picture.split == "train"]
    assert [picture.id for picture in train] == [entry["id"] for entry in content["images"]]
    mine = {one.id: one for picture in train for one in picture.instances}
    assert set(mine) == {entry["id"] for entry in content["annotations"]}
    assert {number: one.area for number, one in mine.items()} == {
        entry["id"]: entry["area"] for entry in content["annotations"]
    }
    assert {number for number, one in mine.items() if one.crowd} == {
        entry["id"] for entry in content["annotations"] if entry["iscrowd"]
    }
    people = read(shared / "coco_free", files="person_keypoints")
    assert any(one.keypoints for one in people.instances)
