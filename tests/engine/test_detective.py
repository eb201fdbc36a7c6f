"""Values that are not finite are planted in each place where they come from; training names it, and replays it."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mrcnn_cli.data.image import read_image
from mrcnn_cli.data.loader import SAMPLE
from mrcnn_cli.data.tiff import encode_tiff
from mrcnn_cli.engine import dump, files
from mrcnn_cli.engine import train as training
from mrcnn_cli.engine.checkpoint import load, read_tensors, write_tensors
from mrcnn_cli.engine.detective import Rewind, investigate
from mrcnn_cli.engine.run import prepare, read_config
from mrcnn_cli.engine.train import train
from mrcnn_cli.errors import UserError
from mrcnn_cli.structures import ImageBatch

RECIPE = "nuclei_scratch"
CPU = torch.device("cpu")


def stopped(tiny, folder, **changes):
    """The message that a run ends with, and the step that it kept."""
    overrides = {**tiny, **{key.replace("__", "."): value for key, value in changes.items()}}
    with pytest.raises(UserError) as caught:
        list(train(prepare(read_config(RECIPE, overrides), folder, "cpu")))
    kept = list(folder.glob("*.nonfinite.safetensors"))
    assert len(kept) == 1
    return str(caught.value), kept[0]


@pytest.fixture(scope="module")
def weights(tmp_path_factory, tiny):
    """The folder of a run of one step."""
    folder = tmp_path_factory.mktemp("weights") / "run"
    list(train(prepare(read_config(RECIPE, {**tiny, "train.steps": 1}), folder, "cpu")))
    return folder


def rewrite(path, tensors, about):
    """A file of other content, with its own checksum."""
    write_tensors(path, tensors, {key: text for key, text in about.items() if key != "crc32"})


def planted(weights, path, name):
    """A checkpoint with NaN in the place of one number."""
    tensors, about = read_tensors(weights / "best.safetensors")
    tensors[name].view(-1)[2] = math.nan
    rewrite(path, tensors, about)
    return str(path)


@pytest.mark.parametrize(
    ("tensor", "layer"),
    [
        ("box_head.fcs.0.weight", "box_head.fcs.0"),
        ("mask_head.convs.0.weight", "mask_head.convs.0"),
        ("rpn.logits.bias", "rpn.logits"),
    ],
)
def test_nan_in_a_weight_names_the_weight_and_its_layer(tmp_path, tiny, weights, tensor, layer):
    start = planted(weights, tmp_path / "w.safetensors", tensor)
    message, kept = stopped(tiny, tmp_path / "run", train__weights=start)
    assert message.startswith("step 1: loss_")
    assert f"{tensor} was not finite before the step, first seen in {layer}" in message
    assert "start from other weights" in message
    assert f"mrcnn replay {kept}" in message
    again = dump.replay(kept, CPU)
    assert again.is_same
    assert again.found.layer == layer
    assert again.found.weights == (tensor,)


def test_a_learning_rate_that_is_too_high_names_layer_term_files_and_annotations(tmp_path, tiny):
    message, kept = stopped(tiny, tmp_path / "run", train__learning_rate=1e6, train__clip_norm=1e30, train__steps=50)
    again = dump.replay(kept, CPU)
    assert again.is_same
    assert again.recorded == again.found  # each loss to the bit
    assert message.startswith(f"step {again.step}: ")
    assert again.step > 1
    assert again.found.symptom in message
    assert again.found.layer in message
    assert "train.learning_rate (now 1e+06)" in message
    assert files.read_rows(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == again.step - 1
    assert [len(image) for image in again.pictures] == [1, 1]
    truth = json.loads(Path(tiny["data.train.annotations"]).read_text())
    for [file] in again.pictures:
        [number] = [image["id"] for image in truth["images"] if file.path.endswith(image["file_name"])]
        assert sorted(file.annotations) == sorted(a["id"] for a in truth["annotations"] if a["image_id"] == number)
        assert file.path in message


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_step_is_taken_again_in_the_precision_and_with_the_layers_of_its_run(tmp_path, tiny, precision):
    changes = {"train__precision": precision, "train__layers": "heads", "train__learning_rate": 1e6}
    _, kept = stopped(tiny, tmp_path / "run", train__clip_norm=1e30, train__steps=50, **changes)
    again = dump.replay(kept, CPU)
    assert again.is_same
    assert str(again.recorded) == str(again.found)  # each loss to the bit, nan too


@pytest.fixture
def tiffs(tmp_path, tiny):
    """Overrides for five float pictures of the sample, and where they lie."""
    folder = tmp_path / "tiffs"
    folder.mkdir()
    truth = json.loads(Path(tiny["data.train.annotations"]).read_text())
    for image in truth["images"]:
        pixels = np.asarray(Image.open(SAMPLE / "train" / image["file_name"]).convert("RGB")).astype(np.float32)
        image["file_name"] = image["file_name"].replace(".png", ".tif")
        (folder / image["file_name"]).write_bytes(encode_tiff(pixels))
    (folder / "truth.json").write_text(json.dumps(truth))
    settings = {
        "data.train.images": str(folder),
        "data.train.annotations": str(folder / "truth.json"),
        "data.val.images": None,
        "data.val.annotations": None,
        "data.normalize": "raw",
        "model.pixels.mean": [0.0, 0.0, 0.0],
        "model.pixels.deviation": [1.0, 1.0, 1.0],
    }
    return {key: value for key, value in {**tiny, **settings}.items() if value is not None}, folder


def test_a_picture_of_enormous_values_is_the_one_that_is_blamed(tmp_path, tiffs):
    overrides, folder = tiffs
    names = sorted(path.name for path in folder.glob("*.tif"))
    (folder / names[2]).write_bytes(encode_tiff(np.full((256, 256, 3), 3e38, np.float32)))
    truth = json.loads((folder / "truth.json").read_text())
    for image in truth["images"]:
        if image["file_name"] == names[2]:
            image["height"] = image["width"] = 256
    (folder / "truth.json").write_text(json.dumps(truth))
    message, kept = stopped(overrides, tmp_path / "run")
    assert "backbone.stem" in message
    assert names[2] in message
    assert sum(name in message for name in names) == 1  # the other picture of the batch is not named
    assert dump.replay(kept, CPU).is_same


def test_pixels_that_are_not_finite_are_taken_for_the_lowest_and_train(tmp_path, tiffs):
    overrides, folder = tiffs
    for path in folder.glob("*.tif"):
        pixels = read_image(path).copy()
        pixels[:20, :20], pixels[30, 30] = math.nan, math.inf
        path.write_bytes(encode_tiff(pixels))
    steps = list(train(prepare(read_config(RECIPE, {**overrides, "train.steps": 2}), tmp_path / "run", "cpu")))
    assert all(math.isfinite(step.values["loss"]) for step in steps)


def spoil_the_second_picture(monkeypatch):
    """One of its pixels is NaN in every batch."""
    collate = ImageBatch.collate

    def spoilt(*arguments):
        batch = collate(*arguments)
        pixels = batch.pixels.float()
        pixels[1, 0, 5, 5] = math.nan
        return ImageBatch(pixels, batch.sizes, batch.original_sizes)

    monkeypatch.setattr(ImageBatch, "collate", spoilt)


def test_pixels_of_a_batch_that_are_not_finite_are_named_with_their_picture(tmp_path, tiny, monkeypatch):
    spoil_the_second_picture(monkeypatch)
    message, kept = stopped(tiny, tmp_path / "run")
    monkeypatch.undo()
    again = dump.replay(kept, CPU)
    assert again.is_same
    assert again.found.pictures == (1,)
    assert again.pictures[1][0].path in message
    assert again.pictures[0][0].path not in message
    assert "first in the output of preprocess" in message
    assert "correct the picture's values or leave it out" in message


class Root(nn.Module):
    """A layer whose gradient is infinite at zero, where its output is zero."""

    def forward(self, x):
        return x.sqrt()


class Chain(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.root, self.last = nn.Linear(4, 4), Root(), nn.Linear(4, 1)
        nn.init.zeros_(self.first.weight)
        nn.init.zeros_(self.first.bias)

    def forward(self, images, targets):
        return {"loss_box": self.last(self.root(self.first(images.pixels))).square().sum()}


def some_images():
    return ImageBatch(torch.ones(2, 4), [(1, 1)] * 2, [(1, 1)] * 2)


def test_a_gradient_that_is_not_finite_names_its_parameters_and_where_it_begins():
    clue = investigate(Chain(), some_images(), [])
    assert clue.terms == []
    assert clue.layer == ""
    assert set(clue.gradients) == {"first.weight", "first.bias"}
    assert clue.behind == "first"
    assert clue.symptom.startswith("the gradient of first.")
    assert "first in the gradient of first's output" in dump.describe(clue, [])


def test_a_gradient_whose_norm_overflows_names_the_largest():
    model = Chain()
    model.root = nn.Identity()
    nn.init.ones_(model.first.weight)
    nn.init.constant_(model.last.weight, 1e15)
    clue = investigate(model, some_images(), [])
    assert clue.gradients == ()
    assert clue.largest[0].startswith("first.")
    assert "the norm of the gradient overflows" in clue.symptom


def test_values_that_a_module_makes_between_its_parts_are_its_own():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = nn.Identity()

        def forward(self, x):
            return self.part(x / 0 - x / 0)

    model = Chain()
    model.root = Halves()
    clue = investigate(model, some_images(), [])
    assert (clue.layer, clue.within) == ("root", True)
    assert "first inside of root" in dump.describe(clue, [])


def test_a_loss_that_is_not_finite_after_sound_layers_is_said_to_arise_there():
    class Logarithm(Chain):
        def forward(self, images, targets):
            return {"loss_box": torch.log(self.last(self.first(images.pixels)) * 0).sum()}

    clue = investigate(Logarithm(), some_images(), [])
    assert clue.symptom == "loss_box is -inf"
    assert "arises in the loss itself" in dump.describe(clue, [])


def test_a_rewound_step_gives_the_same_bits_of_statistics_and_random_numbers():
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=0.5), nn.Dropout(0.5))
    rewind, x = Rewind(model, CPU), torch.randn(2, 3, 8, 8)
    rewind.keep()
    mean = model[0].running_mean.clone()
    first = model(x)
    assert not torch.equal(model[0].running_mean, mean)
    rewind.restore()
    assert torch.equal(model[0].running_mean, mean)
    assert torch.equal(model(x), first)


def test_a_sound_step_is_not_reproduced(tmp_path, tiny, weights):
    start = planted(weights, tmp_path / "w.safetensors", "box_head.fcs.0.weight")
    _, kept = stopped(tiny, tmp_path / "run", train__weights=start)
    tensors, about = read_tensors(kept)
    tensors["model.box_head.fcs.0.weight"].view(-1)[2] = 0.0
    rewrite(kept, tensors, about)
    again = dump.replay(kept, CPU)
    assert not again.is_same
    assert again.found.symptom == ""


def test_a_full_disk_does_not_hide_why_training_stopped(tmp_path, tiny, weights, monkeypatch):
    start = planted(weights, tmp_path / "w.safetensors", "box_head.fcs.0.weight")
    write = files.os.fsync
    run = prepare(read_config(RECIPE, {**tiny, "train.weights": start}), tmp_path / "run", "cpu")
    steps = train(run)

    def full(descriptor):
        if any(path.name.startswith(".step-") for path in (tmp_path / "run").iterdir()):
            raise OSError(28, "No space left on device")
        write(descriptor)

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError, match=r"step 1: loss_\w+ is nan.*could not be kept.*No space left on device"):
        list(steps)
    assert not list((tmp_path / "run").glob("*nonfinite*"))


def test_what_was_saved_before_is_untouched_and_can_be_gone_on_with(tmp_path, tiny):
    folder = tmp_path / "run"
    overrides = {**tiny, "train.steps": 4, "train.save_every": 2}
    steps = train(prepare(read_config(RECIPE, overrides), folder, "cpu"))
    step = training.training_step

    def spoilt(trainer, images, targets):
        if trainer.step == 3:
            with torch.no_grad():
                trainer.model.rpn.logits.weight.fill_(math.nan)
        return step(trainer, images, targets)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "training_step", spoilt)
        with pytest.raises(UserError, match="step 4: .*rpn.logits.weight was not finite"):
            list(steps)
    assert load(folder / "last.safetensors").step == 2
    rest = list(train(prepare(read_config(RECIPE, overrides), folder, "cpu"), resume=True))
    assert [s.step for s in rest if s.kind == "train"] == [3, 4]


def test_a_checkpoint_is_no_step_to_replay(weights, tmp_path):
    with pytest.raises(UserError, match="best.safetensors: holds no step to take again"):
        dump.replay(weights / "best.safetensors", CPU)
    shutil.copy(weights / "best.safetensors", tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((weights / "best.safetensors").read_bytes()[:5000])
    with pytest.raises(UserError, match="cut.safetensors: not a checkpoint, or damaged"):
        dump.replay(tmp_path / "cut.safetensors", CPU)


def test_of_a_step_in_parts_the_first_part_that_is_not_finite_is_kept(tmp_path, tiny, monkeypatch):
    spoil_the_second_picture(monkeypatch)
    message, kept = stopped(tiny, tmp_path / "run", train__accumulate=2)
    again = dump.replay(kept, CPU)
    assert again.is_same
    assert again.found.pictures == (0,)  # of one
    [[file]] = again.pictures
    assert file.path in message
