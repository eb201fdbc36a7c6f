"""Files of proposals, and how their boxes follow the pictures."""

import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_cli.data.annotations import ImageAnnotations, ImageRecord
from mrcnn_cli.data.coco import Dataset
from mrcnn_cli.data.loader import DataConfig, evaluation_batches, sample_split, training_batches
from mrcnn_cli.data.proposals import gathered, packed, read_proposals
from mrcnn_cli.data.transforms import Augment, Resize, resized_proposals, training
from mrcnn_cli.errors import UserError


def record(number, name, height=60, width=90):
    return ImageRecord(number, name, height, width, Path("images"))


def some(path="p.safetensors", ids=(7, 3), names=("a.jpg", "b.jpg"), sizes=((60, 90), (60, 90))):
    boxes = [np.array([[0, 0, 10, 20], [5, 5, 50, 40.0]]), np.array([[1, 2, 3, 4.0]])][: len(ids)]
    return gathered(Path(path), ids, names, sizes, boxes, [np.array([0.2, 0.9]), np.array([0.5])][: len(ids)])


def write(path, proposals):
    path.write_bytes(packed(proposals))
    return path


def test_what_is_written_is_read_and_each_images_boxes_are_best_first(tmp_path):
    path = write(tmp_path / "p.safetensors", some())
    read = read_proposals(path)
    assert read[0].tolist() == [[5, 5, 50, 40], [0, 0, 10, 20]]
    assert read[1].tolist() == [[1, 2, 3, 4]]
    assert read.scores.tolist() == pytest.approx([0.9, 0.2, 0.5])
    assert read.file_names == ("a.jpg", "b.jpg")
    assert read.image_ids.tolist() == [7, 3]
    assert read.sizes.tolist() == [[60, 90], [60, 90]]
    matched = read.matched([record(3, "b.jpg"), record(7, "a.jpg")], Path("train.json"))
    assert [len(boxes) for boxes in matched] == [1, 2]


def test_the_file_is_what_its_documentation_says(tmp_path):
    tensors = safetensors.numpy.load(packed(some()))
    kinds = {name: (str(array.dtype), list(array.shape)) for name, array in tensors.items()}
    assert kinds == {
        "image_ids": ("int64", [2]),
        "sizes": ("int64", [2, 2]),
        "first": ("int64", [3]),
        "boxes": ("float32", [3, 4]),
        "scores": ("float32", [3]),
    }
    assert tensors["first"].tolist() == [0, 2, 3]


def test_the_documentations_own_example_writes_a_file_that_is_read(tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "proposals.md").read_text()
    [code] = [code for code in re.findall(r"```python\n(.*?)```", text, re.S) if "save_file" in code]
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    read = read_proposals(tmp_path / "proposals.safetensors")
    assert read.matched([record(17, "a.jpg", 480, 640)], Path("train.json"))[0].tolist() == [
        [10, 20, 110, 220],
        [0, 0, 640, 480],
    ]


def test_images_without_any_proposal_are_kept_and_images_that_are_missing_are_named(tmp_path):
    proposals = gathered(Path("p"), [1], ["a.jpg"], [(60, 90)], [np.zeros((0, 4))], [np.zeros(0)])
    path = write(tmp_path / "p.safetensors", proposals)
    assert read_proposals(path).matched([record(1, "a.jpg")], Path("train.json"))[0].shape == (0, 4)
    images = [record(n, f"{n}.jpg") for n in range(2, 8)]
    with pytest.raises(UserError) as caught:
        read_proposals(path).matched([record(1, "a.jpg"), *images], Path("train.json"))
    assert str(caught.value) == (
        f"{path}: has no proposals for 6 of the 7 images of train.json: 2.jpg (id 2), 3.jpg (id 3), 4.jpg (id 4) and "
        "3 more; make them with 'mrcnn proposals'"
    )


def test_images_are_found_by_id_or_else_by_name():
    by_name = some(ids=(-1, -1), names=("photos/a.jpg", "b"), sizes=((0, 0), (0, 0)))
    assert by_name.place(12, "a.jpg") == 0
    assert by_name.place(-1, "elsewhere/a.jpg") == 0
    assert by_name.place(12, "b.png") == 1
    assert by_name.place(7, "c.jpg") is None
    assert some().place(3, "b.jpg") == 1
    assert some().place(-1, "photos/b.jpg") == 1


def test_a_name_that_two_pictures_share_tells_nothing_but_the_whole_path_does():
    twins = some(ids=(-1, -1), names=("x/a.jpg", "y/a.jpg"))
    assert twins.place(-1, "a.jpg") is None
    assert twins.place(-1, "y/a.jpg") == 1


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (record(7, "other.jpg"), "was made for other images: id 7 is a.jpg there and other.jpg in train.json"),
        (record(7, "a.jpg", 120, 180), "was made for other images: a.jpg was 90 x 60 and is 180 x 120; make"),
    ],
)
def test_proposals_of_other_images_are_refused(image, message):
    with pytest.raises(UserError, match=message):
        some().matched([image], Path("train.json"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("scores"), "damaged"),
        (lambda a: a.update(first=np.array([0, 2, 9])), "its arrays do not fit each other"),
        (lambda a: a.update(first=np.array([0, 4, 3])), "its arrays do not fit each other"),
        (lambda a: a.update(boxes=np.zeros((3, 5), np.float32)), "its arrays do not fit each other"),
        (lambda a: a.update(boxes=np.full((3, 4), np.nan, np.float32)), "a box is not finite"),
        (lambda a: a.update(image_ids=np.zeros(5, np.int64)), "damaged"),
        (lambda a: a.update(extra=np.zeros(5)), "damaged"),
    ],
)
def test_damaged_files_are_refused(tmp_path, change, message):
    arrays = safetensors.numpy.load(packed(some()))
    change(arrays)
    path = tmp_path / "p.safetensors"
    about = {"format": "mrcnn-proposals-1", "file_names": '["a.jpg", "b.jpg"]'}
    path.write_bytes(safetensors.numpy.save(arrays, metadata=about))
    with pytest.raises(UserError, match=message):
        read_proposals(path)


def test_a_cut_file_and_one_of_weights_are_refused(tmp_path):
    path = write(tmp_path / "p.safetensors", some())
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match="damaged"):
        read_proposals(path)
    path.write_bytes(safetensors.numpy.save({"a": np.zeros(3)}, metadata={"format": "mrcnn-1"}))
    with pytest.raises(UserError, match="a safetensors file, but no proposals"):
        read_proposals(path)


def test_boxes_that_are_not_finite_or_not_as_many_as_scores_name_their_image():
    with pytest.raises(UserError, match="x.pkl: image 5: a box is not finite"):
        gathered(Path("x.pkl"), [5], [""], [(0, 0)], [np.array([[0, 0, np.inf, 1]])], [np.zeros(1)])
    with pytest.raises(UserError, match="x.pkl: image 000012: boxes"):
        gathered(Path("x.pkl"), [-1], ["000012"], [(0, 0)], [np.zeros((2, 4))], [np.zeros(3)])


# ---- with the picture through the transforms


def annotated(boxes, proposals):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    count = len(boxes)
    return ImageAnnotations(
        1,
        boxes,
        np.zeros(count, np.int64),
        np.zeros(count, bool),
        np.arange(count),
        None,
        proposals=None if proposals is None else np.asarray(proposals, np.float32).reshape(-1, 4),
    )


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**20),
    crop=st.sampled_from([None, 32]),
    scale=st.sampled_from([0.5, 1.0, 1.7]),
)
def test_a_proposal_that_is_an_objects_box_stays_so_under_every_transform(seed, crop, scale):
    image = np.zeros((50, 70, 3), np.uint8)
    boxes = [[3, 4, 20, 30], [30, 10, 65, 45], [0, 0, 70, 50.0]]
    augment = Augment(
        flip=0.5, vertical_flip=0.5, quarter_turns=True, scale=(0.8, 1.3), crop=crop, min_side=0, min_visible=0
    )
    generator = np.random.default_rng(seed)
    pixels, targets = training(image, annotated(boxes, boxes), Resize(scale=scale), augment, generator)
    assert torch.equal(targets.proposals, targets.boxes)
    height, width = pixels.shape[-2:]
    assert (targets.proposals >= 0).all()
    assert (targets.proposals[:, 2:] <= torch.tensor([width, height])).all()


def test_proposals_keep_their_order_and_those_without_area_or_outside_of_the_crop_go():
    image = np.zeros((40, 40, 3), np.uint8)
    proposals = [[35, 35, 39, 39], [2, 2, 30, 30], [5, 5, 5, 20], [0, 0, 40, 40], [-20, -20, -1, -1]]
    resize, augment = Resize(scale=1.0), Augment(flip=0)
    _, targets = training(image, annotated([[0, 0, 40, 40]], proposals), resize, augment, np.random.default_rng(0))
    assert targets.proposals.tolist() == [[35, 35, 39, 39], [2, 2, 30, 30], [0, 0, 40, 40]]
    _, targets = training(image, annotated([[0, 0, 40, 40]], None), resize, augment, np.random.default_rng(0))
    assert targets.proposals is None


def test_outside_of_training_boxes_are_resized_by_each_sides_own_factor():
    boxes = np.array([[10, 10, 90, 60], [0, 0, 0.0, 5], [50, 20, 500, 900]], np.float32)
    found = resized_proposals(boxes, (60, 90), (121, 180))
    expected = torch.tensor([[20, 10 * 121 / 60, 180, 121], [100, 20 * 121 / 60, 180, 121]])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_carry_the_proposals_of_their_images(workers):
    split = sample_split("val")
    dataset = Dataset.read(split.images, split.annotations)
    boxes = [dataset.annotations[i].boxes for i in range(len(dataset))]
    records = dataset.images
    names, sizes = [r.file_name for r in records], [(r.height, r.width) for r in records]
    scores = [-np.arange(len(b)) for b in boxes]
    proposals = gathered(Path("p"), [r.id for r in records], names, sizes, boxes, scores)
    dataset.proposals = proposals.matched(records, split.annotations)
    config = DataConfig(resize=Resize(scale=0.5), augment=Augment(quarter_turns=True), workers=workers)
    images, targets = next(training_batches(dataset, config, batch_size=3, seed=0, steps=1))
    assert images.proposals is None
    assert all(len(target) and torch.equal(target.proposals, target.boxes) for target in targets)
    batches = evaluation_batches(dataset, config, batch_size=2)
    images, found = next(batches)
    batches.close()
    for index, record in enumerate(found):
        assert record == records[index]
        factor = torch.tensor(images.sizes[index][::-1]) / torch.tensor([record.width, record.height])
        torch.testing.assert_close(images.proposals[index], torch.from_numpy(boxes[index]) * factor.repeat(2))
    assert images.to("cpu").proposals[0].shape == images.proposals[0].shape
