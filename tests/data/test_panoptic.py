"""Panoptic files and label maps: read, cut into objects, moved with the picture, and their faults named."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from mrcnn_cli.data.annotations import ImageAnnotations
from mrcnn_cli.data.coco import Dataset
from mrcnn_cli.data.loader import DataConfig, SplitConfig, training_batches
from mrcnn_cli.data.panoptic import PanopticMaps, colours_of, encodings, read_ids
from mrcnn_cli.data.transforms import Augment, Resize, training
from mrcnn_cli.errors import UserError
from mrcnn_cli.structures import IGNORED
from tests import panoptic_shapes

SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "converters" / "panopticapi_sample"
STUFF = {20: 1, 31: 2}  # category -> label
CATEGORY_OF = {0: 3, 1: 7}


@pytest.fixture
def files(tmp_path):
    return panoptic_shapes.write(tmp_path, 3)


def read(files, **more):
    return Dataset.read(*files, **more)


def changed(files, change):
    """The list after `change` was made to its content."""
    content = json.loads(files[1].read_text())
    change(content)
    files[1].write_text(json.dumps(content))
    return files


@pytest.mark.parametrize("seed", range(10))
def test_encodings_of_ids_are_pycocotools(seed):
    random = np.random.default_rng(seed)
    ids = random.integers(0, 4, random.integers(1, 12, 2)) * 1000
    for number, encoding in zip((0, 1000, 2000, 5000), encodings(ids, (0, 1000, 2000, 5000)), strict=True):
        mask = np.asfortranarray(ids == number, np.uint8)
        assert encoding == (coco_mask.encode(mask) if mask.any() else None)


def test_ids_are_written_and_read_as_colours(tmp_path):
    ids = np.random.default_rng(0).integers(0, 256**3, (5, 7)).astype(np.int32)
    assert np.array_equal(colours_of(ids), panoptic_shapes.colours(ids))
    Image.fromarray(colours_of(ids)).save(tmp_path / "ids.png")
    assert np.array_equal(read_ids(tmp_path / "ids.png"), ids)


def test_things_are_objects_and_stuff_is_a_map(files):
    dataset = read(files)
    assert dataset.classes == ("square", "disc")
    assert dataset.stuff == ("sky", "grass")
    assert dataset.has_masks
    assert dataset.warnings == []
    assert [(c["id"], c["name"], c.get("isthing", 1)) for c in dataset.categories] == [
        (category["id"], category["name"], category["isthing"]) for category in panoptic_shapes.CATEGORIES
    ]
    for index, record in enumerate(dataset.images):
        ids, info = panoptic_shapes.scene(record.id)
        pixels, objects = dataset.sample(index)
        assert pixels.shape[:2] == ids.shape
        things = [segment for segment in info if segment["category_id"] in CATEGORY_OF.values()]
        assert [CATEGORY_OF[label] for label in objects.labels] == [segment["category_id"] for segment in things]
        for encoding, segment in zip(objects.segmentations, things, strict=True):
            assert np.array_equal(coco_mask.decode(encoding), ids == segment["id"])
        expected = np.full(ids.shape, IGNORED)
        for segment in info:
            expected[ids == segment["id"]] = STUFF.get(segment["category_id"], 0)
        assert np.array_equal(objects.semantic, expected)
        truth, segments = dataset.panoptic_truth(index)
        assert np.array_equal(truth, ids)
        assert segments == [{k: segment[k] for k in ("id", "category_id", "iscrowd")} for segment in info]


def test_the_truth_for_pycocotools_holds_the_things_masks(files):
    dataset = read(files)
    truth = dataset.coco()
    assert truth["categories"] == [{"id": 3, "name": "square", "isthing": 1}, {"id": 7, "name": "disc", "isthing": 1}]
    assert len(truth["annotations"]) == len(dataset.annotations.ids) > 5
    assert len({annotation["id"] for annotation in truth["annotations"]}) == len(truth["annotations"])
    for annotation in truth["annotations"]:
        assert coco_mask.area(annotation["segmentation"]) == annotation["area"]
        assert coco_mask.toBbox(annotation["segmentation"]).tolist() == annotation["bbox"]


def test_boxes_and_areas_that_a_list_lacks_are_taken_from_the_png(files):
    whole = read(files)

    def strip(content):
        for entry in content["annotations"]:
            for segment in entry["segments_info"]:
                del segment["bbox"], segment["area"]

    stripped = read(changed(files, strip))
    assert np.array_equal(stripped.annotations.boxes, whole.annotations.boxes)
    assert np.array_equal(stripped.annotations.areas, whole.annotations.areas)


def test_the_things_of_a_file_are_an_ordinary_file_with_masks(files):
    content = json.loads(files[1].read_text())
    plain = PanopticMaps(files[1], content, None).objects(content, masks=True)
    path = files[1].with_name("objects.json")
    path.write_text(json.dumps(plain))
    ordinary, panoptic = Dataset.read(files[0], path), read(files)
    assert [a["segmentation"] for a in ordinary.coco()["annotations"]] == [
        a["segmentation"] for a in panoptic.coco()["annotations"]
    ]


@pytest.mark.parametrize("name", ["shapes", "panoptic_shapes", "."])
def test_the_png_files_may_lie_in_three_places(files, name):
    folder = files[1].parent / "panoptic_shapes"
    if name == ".":
        for path in folder.iterdir():
            path.rename(folder.parent / path.name)
    else:
        folder.rename(folder.parent / name)
    assert read(files).sample(0)[1].semantic is not None


def test_classes_keep_the_labels_of_a_model(files):
    dataset = read(files, classes=("disc", "square"), stuff=("water", "grass", "sky"))
    first = read(files)
    assert [dataset.classes[label] for label in dataset.annotations.labels] == [
        first.classes[label] for label in first.annotations.labels
    ]
    ours, theirs = dataset.objects(0).semantic, first.objects(0).semantic
    assert np.array_equal(ours == 3, theirs == 1)
    assert np.array_equal(ours == 2, theirs == 2)
    assert len(set(dataset.maps.stuff_ids)) == 3
    assert dataset.maps.stuff_ids[1:] == (31, 20)


def test_a_crowd_of_things_is_a_crowd_and_counts_as_things(files):
    def crowd(content):
        content["annotations"][0]["segments_info"][-1]["iscrowd"] = 1

    dataset = read(changed(files, crowd))
    objects = dataset.objects(0)
    assert objects.crowds.tolist()[-1]
    inside = coco_mask.decode(objects.segmentations[-1]).astype(bool)
    assert (objects.semantic[inside] == 0).all()
    assert dataset.panoptic_truth(0)[1][-1]["iscrowd"]


def moved_by_loop(labels, matrix, size):
    back = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
    result = np.full(size, IGNORED, np.uint8)
    for y in range(size[0]):
        for x in range(size[1]):
            u, v, _ = back @ [x + 0.5, y + 0.5, 1]
            if 0 <= u < labels.shape[1] and 0 <= v < labels.shape[0]:
                result[y, x] = labels[int(v), int(u)]
    return result


@pytest.mark.parametrize("seed", range(12))
def test_the_map_moves_with_the_picture(seed):
    """At its own size each pixel of the picture keeps the label it had; resized, the nearest pixel's."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 200, (37, 52)).astype(np.uint8)
    image = np.repeat(labels[..., None], 3, axis=2)
    square = ImageAnnotations(
        1,
        np.array([[3, 4, 20, 30]], np.float32),
        np.zeros(1, np.int64),
        np.zeros(1, bool),
        np.ones(1, np.int64),
        [[[3.0, 4, 20, 4, 20, 30, 3, 30]]],
        semantic=labels,
    )
    scale = [1.0, 1.0, 0.6, 1.7][seed % 4]
    augment = Augment(flip=0.5, vertical_flip=0.5, quarter_turns=True, crop=[None, 24][seed % 2])
    pixels, targets = training(image, square, Resize(scale=scale), augment, np.random.default_rng(100 + seed))
    assert targets.semantic.shape == pixels.shape[1:]
    assert targets.semantic.dtype == torch.uint8
    if scale == 1:
        assert torch.equal(targets.semantic, pixels[0])
    matrix = targets.masks.matrix.numpy()
    assert np.array_equal(targets.semantic.numpy(), moved_by_loop(labels, matrix, pixels.shape[1:]))


def test_batches_carry_the_maps_through_worker_processes(files):
    config = DataConfig(resize=Resize(scale=1.0), augment=Augment(flip=0.0), workers=1)
    [(images, targets)] = list(training_batches(read(files), config, batch_size=3, seed=0, steps=1))
    assert len(images) == 3
    for target in targets:
        ids, _ = panoptic_shapes.scene(target.image_id)
        assert torch.equal(target.semantic == IGNORED, torch.from_numpy(ids == 0))


def label_maps(files, stuff=("sky", "grass")):
    """The same pictures with a list of objects and a folder of label maps."""
    dataset = read(files)
    folder = files[1].parent / "maps"
    folder.mkdir()
    for index, record in enumerate(dataset.images):
        Image.fromarray(dataset.objects(index).semantic).save(folder / record.file_name)
    objects = files[1].parent / "objects.json"
    objects.write_text(json.dumps(dataset.coco()))
    return files[0], objects, {"stuff": stuff, "semantic": folder}


def test_label_maps_beside_objects_are_the_same_data(files):
    images, objects, more = label_maps(files)
    one, other = read(files), Dataset.read(images, objects, **more)
    assert other.stuff == ("sky", "grass")
    assert other.panoptic_truth(0) is None
    for index in range(3):
        assert np.array_equal(one.objects(index).semantic, other.objects(index).semantic)
        assert np.array_equal(one.objects(index).boxes, other.objects(index).boxes)


def test_faulty_label_maps_are_named(files):
    images, objects, more = label_maps(files, ("sky",))
    with pytest.raises(UserError, match=r"1.png: has the label 2, but data.stuff names 1 classes"):
        Dataset.read(images, objects, **more).objects(0)
    Image.new("L", (3, 4)).save(more["semantic"] / "2.png")
    with pytest.raises(UserError, match=r"2.png: is 4 x 3 .* its image 2.png is 64 x 80"):
        Dataset.read(images, objects, **more).objects(1)
    (more["semantic"] / "2.png").unlink()
    with pytest.raises(UserError, match=r"2.png: does not exist \(1 of 3 label maps are missing\)"):
        Dataset.read(images, objects, **more)
    with pytest.raises(UserError, match="nowhere: no such folder of label maps"):
        Dataset.read(images, objects, stuff=("sky",), semantic="nowhere")


def test_label_maps_need_names():
    split = SplitConfig(images=Path("a"), annotations=Path("b"), semantic=Path("c"))
    with pytest.raises(ValueError, match="need the names of their labels"):
        DataConfig(train=split)
    assert DataConfig(train=split, stuff=("sky",)).train.semantic == Path("c")


def first_segment(content):
    return content["annotations"][0]["segments_info"][0]


FAULTS = {
    "image 1 has no list of segments": lambda c: c["annotations"].pop(0),
    "image 1 has two lists of segments": lambda c: c["annotations"].append(c["annotations"][0]),
    r"annotations\[0\] is no list of segments": lambda c: c["annotations"][0].pop("file_name"),
    r"annotations\[1\] is no list of segments": lambda c: c["annotations"][1].update(image_id=[2]),
    r"image \[1\] has no list": lambda c: c["images"][0].update(id=[1]),
    "image 1: a segment is 7 instead of an object": lambda c: c["annotations"][0]["segments_info"].append(7),
    "a segment has the id 0; ids go from 1": lambda c: first_segment(c).update(id=0),
    "a segment has the id 'x'": lambda c: first_segment(c).update(id="x"),
    "segment 1001 has the unknown category_id 99": lambda c: first_segment(c).update(category_id=99),
    r"unknown category_id \[20\]": lambda c: first_segment(c).update(category_id=[20]),
    "image 1 has two segments of one id": lambda c: c["annotations"][0]["segments_info"].append(first_segment(c)),
    "category 'sky' has 'isthing' None": lambda c: c["categories"][2].pop("isthing"),
    "with the id 20 has the name 'sky'": lambda c: c["categories"][3].update(name="sky"),
    "with the id 31 has the name None": lambda c: c["categories"][3].pop("name"),
    r"categories\[0\]: has no 'name'": lambda c: c["categories"][0].pop("name"),
    r"categories\[0\]: 'id' is \[3\]": lambda c: c["categories"][0].update(id=[3]),
}


@pytest.mark.parametrize("message", FAULTS)
def test_faults_of_a_list_are_named(files, message):
    with pytest.raises(UserError, match=f"panoptic_shapes.json: .*{message}"):
        read(changed(files, FAULTS[message]))


def test_stuff_that_a_model_does_not_know_is_refused(files):
    with pytest.raises(UserError, match="has the stuff 'sky', which is not among the classes of stuff grass"):
        read(files, stuff=("grass",))


def test_missing_png_files_are_counted_and_their_places_named(files):
    folder = files[1].parent / "panoptic_shapes"
    (folder / "2.png").unlink()
    with pytest.raises(UserError, match=r"panoptic_shapes/2.png: listed in .* \(1 of 3 PNG files are missing\)"):
        read(files)


def test_a_png_that_contradicts_its_list_is_named(files):
    folder = files[1].parent / "panoptic_shapes"
    dataset = read(files)
    Image.new("RGB", (80, 64)).save(folder / "1.png")
    with pytest.raises(UserError, match=r"1.png: has no pixels of segment 9000000"):
        dataset.objects(0)
    Image.new("RGB", (64, 80)).save(folder / "1.png")
    with pytest.raises(UserError, match=r"1.png: is 80 x 64 .* its image 1.png is 64 x 80"):
        dataset.objects(0)
    Image.new("I;16", (80, 64)).save(folder / "1.png")
    with pytest.raises(UserError, match=r"1.png: is grey with deep pixels"):
        dataset.objects(0)


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="needs panopticapi's sample in ../shared")
def test_panopticapis_sample_is_read_as_it_converts_it_itself():
    dataset = Dataset.read(SAMPLE / "input_images", SAMPLE / "panoptic_examples.json")
    assert (len(dataset.classes), len(dataset.stuff)) == (80, 53)
    expected = json.loads((SAMPLE / "panoptic_coco_detection_format.json").read_text())["annotations"]

    def row(annotation):
        keys = ("image_id", "category_id", "iscrowd", "area", "bbox")
        return json.dumps([*(annotation[key] for key in keys), annotation["segmentation"]["counts"]])

    things = {number for number, thing in dataset.maps.things.items() if thing}
    theirs = [row(entry) for entry in expected if entry["category_id"] in things]
    ours = [
        row({**a, "bbox": [int(v) for v in a["bbox"]], "area": int(a["area"])}) for a in dataset.coco()["annotations"]
    ]
    assert sorted(ours) == sorted(theirs)
    assert len(ours) == 43
