"""Pictures of five channels and sixteen bits, from the folder to the overlay."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mrcnn_cli import config as recipes
from mrcnn_cli.data.coco import Dataset
from mrcnn_cli.data.image import read_image
from mrcnn_cli.data.loader import DataConfig
from mrcnn_cli.data.shapes import CLASSES, shapes
from mrcnn_cli.data.tiff import encode_tiff
from mrcnn_cli.engine.checkpoint import load, write_weights
from mrcnn_cli.engine.pixels import fit_pixels
from mrcnn_cli.engine.predict import predict, predict_files
from mrcnn_cli.engine.run import prepare, read_config
from mrcnn_cli.engine.train import train
from mrcnn_cli.errors import UserError
from mrcnn_cli.models import build_model
from mrcnn_cli.models.preprocess import PixelsConfig, Preprocess

SMALL = {
    "model.backbone.width": 8,
    "model.fpn.channels": 16,
    "model.box_head.fc_channels": 16,
    "model.mask_head.conv_channels": 16,
    "data.normalize": "none",
    "data.resize.scale": 1.0,
    "data.augment.crop": 64,
    "data.augment.mosaic": 0.5,
    "data.augment.copy_paste": 0.5,
    "data.workers": 0,
    "train.batch_size": 2,
    "train.steps": 2,
}


def five(image: np.ndarray) -> np.ndarray:
    """12-bit pixels of five channels."""
    return np.concatenate([image, 255 - image[:, :, :2]], axis=2).astype(np.uint16) * 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four pictures of shapes, as PNG files and as TIFF files of five channels, with their COCO files."""
    root = tmp_path_factory.mktemp("pixels")
    truth = {"images": [], "annotations": [], "categories": [{"id": n, "name": name} for n, name in enumerate(CLASSES)]}
    for number in range(4):
        image, labels, masks = shapes(0, "train", number, (64, 72), 3)
        Image.fromarray(image).save(root / f"{number}.png")
        (root / f"{number}.tif").write_bytes(encode_tiff(five(image)))
        truth["images"].append({"id": number, "file_name": f"{number}.png", "height": 64, "width": 72})
        for label, mask in zip(labels, masks, strict=True):
            rows, columns = mask.nonzero()
            x1, y1, x2, y2 = (int(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
            outline = [x1, y1, x2, y1, x2, y2, x1, y2]
            annotation = {"id": len(truth["annotations"]) + 1, "image_id": number, "category_id": label}
            annotation |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": [outline], "iscrowd": 0}
            truth["annotations"].append(annotation)
    for suffix in ("png", "tif"):
        (root / f"{suffix}.json").write_text(json.dumps(truth).replace(".png", f".{suffix}"))
    return root


def run_of(folder, out, suffix="tif", **more):
    data = {"data.train.images": str(folder), "data.train.annotations": str(folder / f"{suffix}.json")}
    data |= {key.replace("train", "val"): value for key, value in data.items()}
    return prepare(read_config("nuclei_scratch", {**SMALL, **data, **more}), out, "cpu")


def test_a_run_computes_what_it_needs_and_prediction_uses_the_same(folder, tmp_path):
    run = run_of(folder, tmp_path / "run")
    assert any("have 5 channels, model.pixels.mean has 3 values" in line for line in run.warnings)
    assert any(
        "reach 4080 of 65535" in line or "of 65535 and would become nearly black" in line for line in run.warnings
    )
    steps = list(train(run))
    assert [step.kind for step in steps] == ["train", "train", "evaluation"]
    kept = load(tmp_path / "run")
    assert kept.config.data.channels == 5
    assert kept.config.model.pixels == run.config.model.pixels
    written = recipes.read(tmp_path / "run" / "config.toml")
    assert written["model"]["pixels"]["mean"] == list(run.config.model.pixels.mean)
    assert kept.model.backbone.stem.weight.shape[1] == 5
    assert read_config(tmp_path / "run").data.channels == 5

    image = read_image(folder / "1.tif")
    (found,) = predict(kept, [folder / "1.tif"], score_threshold=0.0)
    (same,) = predict(kept, [image], score_threshold=0.0)
    assert torch.equal(found.boxes, same.boxes)
    (done,) = predict_files(kept, [folder / "1.tif"], tmp_path / "out", score_threshold=0.0)
    assert len(done.detections) == len(found)
    assert read_image(done.overlay).std() > 10
    for wrong in (image[:, :, :3], image[:, :, 0]):
        with pytest.raises(UserError, match=r"must be \[H, W, 5\]"):
            predict(kept, [wrong])
    with pytest.raises(UserError, match="a PIL image"):
        predict(kept, [Image.fromarray(np.zeros((8, 8, 3), np.uint8))])


def test_mean_and_deviation_are_of_the_values_that_the_network_is_shown(folder, tmp_path):
    pixels = np.concatenate([read_image(folder / f"{n}.tif").reshape(-1, 5) for n in range(4)]).astype(np.float64)
    auto = {"model.pixels.mean": "auto", "model.pixels.deviation": "auto"}
    raw = run_of(folder, tmp_path, **auto, **{"data.normalize": "raw"})
    assert raw.warnings == run_of(folder, tmp_path, **auto, **{"data.normalize": "percentile"}).warnings
    assert raw.config.model.pixels.mean == pytest.approx(pixels.mean(0).tolist(), rel=1e-5)
    assert raw.config.model.pixels.deviation == pytest.approx(pixels.std(0).tolist(), rel=1e-5)
    list(train(raw))


def test_colours_keep_the_recipes_mean_unless_it_is_auto(folder, tmp_path):
    run = run_of(folder, tmp_path, "png")
    assert run.config.model.pixels.mean == (127.0, 127.0, 127.0)
    assert run.config.data.channels == 3
    auto = {"model.pixels.mean": "auto", "model.pixels.deviation": "auto"}
    colours = run_of(folder, tmp_path, "png", **auto).config.model.pixels
    turned = run_of(folder, tmp_path, "png", **auto, **{"model.pixels.channels": "bgr"}).config.model.pixels
    pixels = np.concatenate([read_image(folder / f"{n}.png").reshape(-1, 3) for n in range(4)])
    assert colours.mean == pytest.approx(pixels.mean(0).tolist(), rel=1e-5)
    assert turned.mean == colours.mean[::-1]
    assert turned.deviation == colours.deviation[::-1]


def test_one_channel_is_taken_where_the_recipe_says_so(folder, tmp_path):
    run = run_of(folder, tmp_path / "run", "png", **{"data.channels": 1})
    assert len(run.config.model.pixels.mean) == 1
    list(train(run))
    model = load(tmp_path / "run")
    assert len(predict(model, [folder / "0.png", read_image(folder / "0.png", 1)[:, :, 0]])) == 2


def test_pictures_are_zoomed_out_on_a_canvas_of_the_mean_that_the_network_subtracts(folder, tmp_path):
    mean = {"data.augment.zoom_out": 1.0, "model.pixels.mean": [1.0, 2.0, 3.0]}
    config = run_of(folder, tmp_path, "png", **mean).config
    assert config.data.augment.zoom_out_colour == (1, 2, 3)
    config = run_of(folder, tmp_path, "png", **mean, **{"model.pixels.channels": "bgr"}).config
    assert config.data.augment.zoom_out_colour == (3, 2, 1)
    config = run_of(folder, tmp_path, **mean, **{"data.normalize": "raw"}).config
    assert config.data.augment.zoom_out_colour == config.model.pixels.mean
    assert len(config.model.pixels.mean) == 5
    config = run_of(folder, tmp_path, "png", **mean, **{"data.augment.zoom_out_colour": [0.0, 0.0, 9.0]}).config
    assert config.data.augment.zoom_out_colour == (0, 0, 9)
    with pytest.raises(UserError, match=r"zoom_out_colour has 3 values, .*0.tif 5 channels; leave it out"):
        run_of(folder, tmp_path, **{"data.augment.zoom_out": 1.0, "data.augment.zoom_out_colour": [0, 0, 9]})


def test_what_does_not_fit_is_said_before_the_first_step(folder, tmp_path):
    dataset = Dataset.read(folder, folder / "tif.json")
    with pytest.raises(UserError, match="saturation and hue are of pictures in RGB, .*0.tif has 5 channels"):
        fit_pixels(DataConfig(augment={"hue": (-0.1, 0.1)}), PixelsConfig(), dataset)
    with pytest.raises(UserError, match=r"has 5 channels, but 4 are wanted \(data.channels\)"):
        run_of(folder, tmp_path, **{"data.channels": 4})
    given = PixelsConfig(mean=(0.0,) * 5, deviation=(1.0,) * 5)
    _, kept, warnings = fit_pixels(DataConfig(normalize="raw"), given, dataset)
    assert kept == given
    assert "far from model.pixels.mean" in warnings[0]


def test_a_checkpoint_of_before_there_were_channels_is_one_of_three(folder, tmp_path):
    run = run_of(folder, tmp_path, "png")
    old = run.config.model_copy(update={"data": run.config.data.model_copy(update={"channels": None})})
    write_weights(tmp_path / "old.safetensors", build_model(old.model, 3), old, run.categories, 1)
    assert load(tmp_path / "old.safetensors").config.data.channels == 3


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"mean": "auto"}, "mean and deviation are computed together"),
        ({"mean": "imagenet"}, "^config: mean: input should be a valid tuple, got 'imagenet'"),
        ({"mean": [1.0, "a"]}, r"^config: mean\[1\]: input should be a valid number"),
        ({"mean": [1.0]}, "one value per channel each"),
        ({"mean": [], "deviation": []}, "one value per channel each"),
        ({"mean": [1.0], "deviation": [0.0]}, "deviation must be positive"),
    ],
)
def test_means_that_do_not_fit_are_refused(table, words):
    with pytest.raises(UserError, match=words):
        recipes.validate(PixelsConfig, table)


def test_a_model_without_pictures_cannot_have_a_mean_computed():
    with pytest.raises(UserError, match="no pictures to compute it from"):
        Preprocess(PixelsConfig(mean="auto", deviation="auto"))
