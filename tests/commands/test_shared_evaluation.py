"""mrcnn evaluate in several processes: the bytes of one, on the screen and in the files."""

import json
import os
import shutil
import signal
import subprocess

import pytest

from mrcnn_cli.engine import library
from tests import panoptic_shapes
from tests.commands import test_panoptic
from tests.commands.conftest import assignments
from tests.commands.test_processes import command, process_of, run
from tests.engine.test_keypoints import Mice

pytestmark = pytest.mark.slow


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same_bytes(run_folder, tmp_path, *words):
    """The files of one process, having seen that two and three leave the same."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3", "-m", "mrcnn_cli")
    for name, more, module in (
        ("one", [], ("-m", "mrcnn_cli")),
        ("two", ["--processes", 2], ("-m", "mrcnn_cli")),
        ("three", [], torchrun),
    ):
        said = run("evaluate", run_folder, "--out", tmp_path / name, *words, *more, module=module)
        assert said.count("weights  ") == said.count("written  ") == 1
    found = {name: files(tmp_path / name) for name in ("one", "two", "three")}
    assert found["one"].keys() == found["two"].keys() == found["three"].keys()
    assert found["two"] == found["one"]
    assert found["three"] == found["one"]
    return found["one"]


def test_boxes_and_masks(trained, shapes, tmp_path):
    found = same_bytes(trained, tmp_path, "--data", shapes, shapes / "shapes.json", "--set", "evaluate.batch_size=2")
    assert len(json.loads(found["results.json"])) == json.loads(found["metrics.json"])["detections"] > 4


def test_panoptic_segments(tmp_path):
    data = [str(path) for path in panoptic_shapes.write(tmp_path, 5)]
    words = ["panoptic_fpn_r50_3x", "--train", *data, "--val", *data, *assignments(*test_panoptic.TINY)]
    run("train", *words, "--out", tmp_path / "run", "--set", "train.steps=1")
    found = same_bytes(tmp_path / "run", tmp_path / "found")
    assert json.loads(found["metrics.json"])["pq"] is not None
    assert len([name for name in found if name.startswith("panoptic/")]) == 5
    assert len(json.loads(found["panoptic.json"])["annotations"]) == 5


def test_keypoints(tmp_path):
    overrides = Mice(tmp_path).overrides(**{"train.steps": 1, "model.box_head.score_threshold": 0.0})
    for _ in library.train("keypoint_rcnn_r50_fpn_1x", overrides, out=tmp_path / "run", device="cpu"):
        pass
    found = same_bytes(tmp_path / "run", tmp_path / "found")
    assert json.loads(found["metrics.json"])["keypoint_ap"] is not None
    assert all(len(entry["keypoints"]) == 12 for entry in json.loads(found["results.json"]))


def test_more_processes_than_pictures_show_the_table_of_one(trained, own_data, tmp_path):
    one, many = run("evaluate", trained, what="stdout"), run("evaluate", trained, "--processes", 6, what="stdout")
    assert many == one
    assert one.startswith("COCO metrics: 4 images")


def test_a_mistake_that_all_meet_is_said_once(trained, tmp_path):
    said = run("evaluate", trained, "--processes", 2, "--data", tmp_path, "none.json", status=1)
    assert said.count("error: ") == 1
    assert "none.json: no such annotation file" in said
    said = run("evaluate", trained, "--processes", 2, "--set", "evaluate.batch_sise=2", status=1)
    assert said.count("error: ") == 1
    assert "did you mean 'batch_size'?" in said


def test_a_picture_that_only_one_process_meets_is_named_with_its_rank(trained, shapes, tmp_path):
    folder = shutil.copytree(shapes, tmp_path / "pictures")
    (folder / "4.png").write_bytes((folder / "4.png").read_bytes()[:80])
    said = run("evaluate", trained, "--processes", 2, "--data", folder, folder / "shapes.json", status=1)
    assert said.count("error: ") == 1
    assert f"error: rank 1: {folder / '4.png'}: damaged or cut short" in said


@pytest.mark.parametrize("lost", [None, 1])
def test_an_evaluation_that_is_stopped_says_why(trained, shapes, tmp_path, lost):
    table = json.loads((shapes / "shapes.json").read_text())
    picture = table["images"][0]
    table["images"] = [{**picture, "id": number} for number in range(1, 20_001)]
    table["annotations"] = [{**table["annotations"][0], "image_id": 1}]
    (tmp_path / "many.json").write_text(json.dumps(table))
    words = command("evaluate", trained, "--data", shapes, tmp_path / "many.json", "--processes", 2)
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        while "data     20,000 images" not in process.stderr.readline():
            assert process.poll() is None
        if lost is None:
            os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it
        else:
            os.kill(process_of(process.pid, lost), signal.SIGKILL)
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == (130 if lost is None else 1)
    if lost is None:
        assert [line for line in said.splitlines() if "error" in line] == ["error: interrupted"]
    else:
        assert "error: rank 1 was ended by SIGKILL" in said
