"""States of a run: which are kept, which one is taken, and what may change before it goes on."""

import json
import os

import pytest
import torch
from torch import nn

from mrcnn_cli.engine import resume
from mrcnn_cli.engine import train as training
from mrcnn_cli.engine.checkpoint import read_tensors, step_of, write_tensors
from mrcnn_cli.engine.train import train
from mrcnn_cli.errors import UserError

FILES = ("last.safetensors", "best.safetensors", "state.safetensors")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, prepared):
    """The folder of a run of four steps that was evaluated after two and four."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    list(train(prepared(folder, train__evaluate_every=2)))
    return folder


def results(folder):
    """The bytes of what a run leaves, and its rows without what depends on the clock."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timeless = [{k: v for k, v in row.items() if k not in ("seconds", "data_seconds", "memory_mb")} for row in rows]
    return {name: (folder / name).read_bytes() for name in FILES}, timeless


def test_the_newest_states_are_kept_and_older_ones_removed(tmp_path, prepared):
    list(train(prepared(tmp_path / "run", train__save_every=1, train__keep_states=3)))
    assert [path.name for path in resume.state_files(tmp_path / "run")] == [
        "state.safetensors",
        "state-3.safetensors",
        "state-2.safetensors",
    ]
    assert [step_of(path) for path in resume.state_files(tmp_path / "run")] == [4, 3, 2]


def test_one_state_is_kept_where_one_is_asked_for(tmp_path, prepared):
    list(train(prepared(tmp_path / "run", train__save_every=1, train__keep_states=1)))
    assert [path.name for path in resume.state_files(tmp_path / "run")] == ["state.safetensors"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_state_is_passed_over_for_the_one_before_and_the_bits_are_the_same(
    finished, tmp_path, prepared, damage
):
    run = prepared(tmp_path / "run", train__evaluate_every=2)
    list(train(run))
    path = tmp_path / "run" / "state.safetensors"
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[-5000] ^= 1
    path.write_bytes({"cut": content[:-1000], "flipped": content, "empty": b""}[damage])
    state = resume.read_state(run.folder)
    assert (state.path.name, state.step) == ("state-2.safetensors", 2)
    [remark] = resume.remarks(run.folder, state, run.device)
    assert "state.safetensors: " in remark
    assert remark.endswith("going on from state-2.safetensors, step 2")
    steps = [step.step for step in train(prepared(tmp_path / "run", train__evaluate_every=2), resume=True)]
    assert steps == [3, 4, 4]
    assert results(run.folder) == results(finished)


def test_without_any_whole_state_the_first_one_is_named(tmp_path, prepared):
    run = prepared(tmp_path / "run", train__steps=2)
    list(train(run))
    (run.folder / "state.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="state.safetensors: not a checkpoint, or damaged"):
        resume.read_state(run.folder)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("point", range(3, 10))
def test_a_stop_at_any_moment_of_saving_changes_no_bit(finished, tmp_path, prepared, monkeypatch, point):
    """At each of the renames that a run of four steps makes visible, after config.toml and environment.txt."""
    rename, count = os.replace, 0

    def stop(source, target):
        nonlocal count
        count += 1
        if count == point:
            raise Killed
        rename(source, target)

    monkeypatch.setattr(os, "replace", stop)
    changes = {"train__evaluate_every": 2}
    with pytest.raises(Killed):
        list(train(prepared(tmp_path / "run", **changes)))
    monkeypatch.undo()
    saved = resume.can_resume(tmp_path / "run")
    list(train(prepared(tmp_path / "run", **changes), resume=saved))
    assert results(tmp_path / "run") == results(finished)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {path.name for path in finished.iterdir()}


def test_layers_that_draw_random_numbers_resume_to_the_same_bits(tmp_path, prepared, monkeypatch):
    build = training.build_model

    def with_dropout(config, num_classes):
        model = build(config, num_classes)
        model.backbone.stages[0].append(nn.Dropout(0.5))
        return model

    monkeypatch.setattr(training, "build_model", with_dropout)
    list(train(prepared(tmp_path / "whole")))
    first = train(prepared(tmp_path / "parts"))
    for step in first:
        if step.step == 3:
            first.close()
            break
    torch.rand(7)  # whatever else draws in between
    list(train(prepared(tmp_path / "parts"), resume=True))
    assert (tmp_path / "parts" / "last.safetensors").read_bytes() == (
        tmp_path / "whole" / "last.safetensors"
    ).read_bytes()


def test_a_recipe_that_was_edited_needs_an_assignment(finished, tmp_path):
    text = (finished / "config.toml").read_text()
    assert "clip_norm = 5.0" in text
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.toml").write_text(text.replace("clip_norm = 5.0", "clip_norm = 1.0"))
    state = resume.read_state(finished)
    message = r"differs from what state.safetensors was trained with: train.clip_norm: 5.0 -> 1.0; put it back, or"
    with pytest.raises(UserError, match=message):
        resume.changed_recipe(folder, state, [])
    config, changes = resume.changed_recipe(folder, state, ["train.clip_norm=1.0", "train.steps=9"])
    assert (config.train.clip_norm, config.train.steps) == (1.0, 9)
    assert changes == ["train.clip_norm: 5.0 -> 1.0", "train.steps: 4 -> 9"]


def test_a_change_that_was_asked_for_is_kept_even_if_the_run_stops_at_once(finished, tmp_path, prepared):
    list(train(prepared(tmp_path / "run")))
    steps = train(prepared(tmp_path / "run", train__steps=6), resume=True)
    next(steps)
    steps.close()
    state = resume.read_state(tmp_path / "run")
    config, changes = resume.changed_recipe(tmp_path / "run", state, [])
    assert (config.train.steps, changes, state.step) == (6, [], 4)


def test_another_environment_is_told(finished, tmp_path):
    state = resume.read_state(finished)
    assert resume.remarks(finished, state, torch.device("cpu")) == []
    text = (finished / "environment.txt").read_text()
    (tmp_path / "environment.txt").write_text(text.replace("torch 2", "torch 1"))
    [remark] = resume.remarks(tmp_path, state, torch.device("cpu"))
    assert "torch 1" in remark
    assert remark.endswith("the bits may differ")


def test_files_of_tensors_have_the_same_bytes_and_any_type(tmp_path):
    types = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
    tensors = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in types}
    tensors |= {"scalar": torch.tensor(3.0), "none": torch.empty(0, 4), "last": torch.rand(2, 3, 4, 5).mT}
    about = {f"key{number}": "x" for number in range(9)}
    write_tensors(tmp_path / "one", tensors, about)
    write_tensors(tmp_path / "two", dict(reversed(tensors.items())), dict(reversed(about.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    found, said = read_tensors(tmp_path / "one")
    assert said.items() >= about.items()
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
