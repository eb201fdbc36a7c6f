"""`mrcnn`, called in this process and in an empty folder."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from PIL import Image, ImageDraw

from mrcnn_cli.__main__ import main


@dataclass(frozen=True)
class Outcome:
    """What a command line left on the screen."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line that says what went wrong."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0].removeprefix("error: ")


@pytest.fixture
def mrcnn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return Outcome(status, *capsys.readouterr())

    return call


CATEGORIES = [{"id": 3, "name": "square"}, {"id": 7, "name": "disc"}]
# A network small enough for steps of milliseconds; its anchors fit the shapes below.
TINY = (
    "model.backbone.width=8",
    "model.fpn.channels=16",
    "model.box_head.fc_channels=16",
    "model.mask_head.conv_channels=16",
    "model.box_head.detections_per_image=5",
    "data.resize.scale=1.0",
    "data.augment.crop=64",
    "data.workers=0",
    "train.batch_size=2",
    "train.warmup_steps=1",
)


def assignments(*pairs: str) -> list[str]:
    return [word for pair in pairs for word in ("--set", pair)]


def paint(path: Path, square: tuple[int, int], disc: tuple[int, int]) -> None:
    """A picture of 64 x 64 pixels with a square and a disc, each 20 pixels wide, at (x, y) of its corner."""
    picture = Image.new("RGB", (64, 64), (20, 20, 30))
    pen = ImageDraw.Draw(picture)
    pen.rectangle((*square, square[0] + 19, square[1] + 19), fill=(220, 60, 60))
    pen.ellipse((*disc, disc[0] + 19, disc[1] + 19), fill=(60, 220, 60))
    picture.save(path)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with four pictures of two classes, and their COCO file shapes.json."""
    folder = tmp_path_factory.mktemp("shapes")
    truth: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": CATEGORIES}
    for number in range(1, 5):
        name = f"{number}.png"
        square, disc = (2 + 4 * number, 4), (40 - 6 * number, 40)
        paint(folder / name, square, disc)
        truth["images"].append({"id": number, "file_name": name, "width": 64, "height": 64})
        for (x, y), category in ((square, 3), (disc, 7)):
            outline = [x, y, x + 20, y, x + 20, y + 20, x, y + 20]
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": number,
                    "category_id": category,
                    "bbox": [x, y, 20, 20],
                    "segmentation": [outline],
                    "area": 400,
                    "iscrowd": 0,
                }
            )
    (folder / "shapes.json").write_text(json.dumps(truth))
    return folder


@pytest.fixture
def own_data(shapes: Path) -> list[str]:
    """The arguments that train on the shapes and evaluate on them."""
    return [argument for flag in ("--train", "--val") for argument in (flag, str(shapes), str(shapes / "shapes.json"))]


@pytest.fixture(scope="session")
def trained(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two steps on the shapes. Tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    data = [str(shapes), str(shapes / "shapes.json")]
    words = ["nuclei_scratch", "--train", *data, "--val", *data, "--out", str(folder)]
    assert main(["train", *words, *assignments(*TINY, "train.steps=2")]) == 0
    return folder


@pytest.fixture
def prepared(shapes: Path, tmp_path: Path) -> Path:
    """A prepared data set: two of the shapes' pictures to learn from, all to evaluate on."""
    folder = tmp_path / "prepared"
    folder.mkdir()
    truth = json.loads((shapes / "shapes.json").read_text())
    (folder / "val.json").write_text(json.dumps(truth))
    truth["images"] = truth["images"][:2]
    truth["annotations"] = [entry for entry in truth["annotations"] if entry["image_id"] <= 2]
    (folder / "train.json").write_text(json.dumps(truth))
    splits = {name: {"images": str(shapes), "annotations": f"{name}.json"} for name in ("train", "val")}
    content = {"name": "shapes", "classes": ["square", "disc"], "splits": splits}
    (folder / "dataset.toml").write_text(tomli_w.dumps(content))
    return folder
