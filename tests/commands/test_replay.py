"""A run that breaks, and the step that it keeps, through the command line."""

import json

import pytest

from tests.commands.conftest import TINY, assignments


@pytest.fixture
def broken(mrcnn, own_data):
    """How training with a learning rate of ten million ends."""
    wild = assignments(*TINY, "train.steps=50", "train.learning_rate=1e7", "train.clip_norm=1e30")
    return mrcnn("train", "nuclei_scratch", *own_data, *wild, "--out", "run")


def test_a_step_that_is_not_finite_is_kept_and_replayed(mrcnn, broken, tmp_path):
    assert broken.status == 1
    command = broken.error.partition("see it again with: mrcnn ")[2]
    outcome = mrcnn(*command.split())
    assert outcome.status == 0
    assert "reproduced: the same values, in the same layer" in outcome.err
    assert broken.error.partition("; ")[0].partition(": ")[2] in outcome.err
    said = mrcnn(*command.split(), "--json").json
    assert said["is_same"]
    assert said["recorded"] == said["found"]
    assert [len(image) for image in said["pictures"]] == [1, 1]
    assert all(file["path"].endswith(".png") and len(file["annotations"]) == 2 for [file] in said["pictures"])
    step = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"] + 1
    assert said["step"] == step
    assert f"Step {step}" in outcome.out


def test_replaying_what_is_no_kept_step_is_refused(mrcnn, trained, tmp_path):
    for name, words in (("state", "holds no step to take again"), ("gone", "no such file")):
        outcome = mrcnn("replay", trained / f"{name}.safetensors")
        assert outcome.status == 1
        assert words in outcome.error


def test_an_annotation_with_nan_is_refused_at_reading_and_named(mrcnn, shapes, tmp_path):
    truth = json.loads((shapes / "shapes.json").read_text())
    truth["annotations"][0]["bbox"][2] = float("nan")
    truth["annotations"][3]["segmentation"][0][1] = float("inf")
    (tmp_path / "a.json").write_text(json.dumps(truth))
    settings = assignments(*TINY, "train.steps=2")
    outcome = mrcnn("train", "nuclei_scratch", "--train", shapes, "a.json", *settings, "--out", "run")
    assert outcome.status == 0
    warnings = [line for line in outcome.err.splitlines() if line.startswith("warning: ")]
    assert warnings[0].startswith(
        "warning: 1 annotation with a box that is not finite left out (first: annotation 1 of"
    )
    assert warnings[1].startswith(
        "warning: 1 polygon with coordinates that are not finite left out (first: annotation 4"
    )
    assert "data     4 images with 6 objects" in outcome.err
