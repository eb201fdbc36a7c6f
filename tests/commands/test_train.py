"""mrcnn train: a run from nothing, from own data, interrupted and gone on with."""

import errno
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import torch

from mrcnn_cli.engine import run as runs
from mrcnn_cli.engine.train import Step
from tests.commands.conftest import TINY, assignments


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def train_steps(folder):
    return [row["step"] for row in rows(folder) if row["kind"] == "train"]


def test_a_run_leaves_everything_that_scripts_rely_on(trained):
    names = {
        "config.toml",
        "environment.txt",
        "metrics.jsonl",
        "last.safetensors",
        "best.safetensors",
        "state.safetensors",
        "losses.png",
    }
    assert {path.name for path in trained.iterdir()} == names
    assert train_steps(trained) == [1, 2]
    evaluation = rows(trained)[-1]
    assert evaluation["kind"] == "evaluation"
    assert all(0 <= evaluation[key] <= 1 for key in ("mask_ap", "mask_ap50", "box_ap", "box_ap50"))
    assert tomllib.loads((trained / "config.toml").read_text())["data"]["classes"] == ["square", "disc"]


def test_nothing_but_train_learns_the_sample_and_says_what_it_took(mrcnn, tmp_path):
    small = ("train.steps=2", "train.batch_size=1", "data.augment.crop=64", "data.resize.scale=0.25", "data.workers=0")
    outcome = mrcnn("train", *assignments(*small, "model.box_head.detections_per_image=3"))
    assert outcome.status == 0, outcome.err
    recipe, reason = runs.default_recipe()
    assert f"no recipe named: taking {recipe}, {reason}" in outcome.err
    assert "40 to evaluate on" in outcome.err
    assert re.search(r"^step 2/2  loss \d+\.\d+  .* s/step  0:00 left  .* MB  rpn objectness \d.*", outcome.err, re.M)
    assert re.search(r"^box +\d\.\d{3}", outcome.out, re.M)
    assert re.search(r"^mask +\d\.\d{3}", outcome.out, re.M)
    folder = (tmp_path / "runs" / "latest").resolve()
    assert folder.name.endswith(f"-{recipe}")
    predict = re.search(r"^next +(mrcnn predict .*)$", outcome.err, re.M)[1].split()[1:]
    assert Path(predict[1]).is_dir()
    assert predict[2:] == ["--weights", f"runs/{folder.name}"]


def test_own_data_without_a_recipe_takes_one_for_own_data(mrcnn, own_data, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # no ImageNet weights
    outcome = mrcnn("train", *own_data, *assignments("train.steps=0"))
    assert outcome.status == 1
    assert f"taking {runs.OWN_SCRATCH_RECIPE}, from scratch: the ImageNet weights are not installed" in outcome.err
    assert "train.steps: input should be greater than or equal to 1" in outcome.error


def test_a_prepared_data_set_is_learnt_with_its_splits_and_classes(mrcnn, prepared, tmp_path):
    text = (prepared / "dataset.toml").read_text()
    (prepared / "dataset.toml").write_text(text.replace('"square",\n    "disc"', '"disc",\n    "square"'))
    words = ["--out", "here", *assignments(*TINY, "train.steps=1")]
    outcome = mrcnn("train", "nuclei_scratch", "--data", prepared, *words)
    assert outcome.status == 0, outcome.err
    assert "data     2 images with 4 objects, 4 to evaluate on" in outcome.err
    data = tomllib.loads((tmp_path / "here" / "config.toml").read_text())["data"]
    assert data["classes"] == ["disc", "square"]
    assert data["val"]["annotations"] == str(prepared / "val.json")


def test_a_prepared_data_set_names_all_splits_and_needs_one_to_learn_from(mrcnn, prepared, own_data):
    assert mrcnn("train", "--data", prepared, *own_data).status == 2
    text = (prepared / "dataset.toml").read_text()
    (prepared / "dataset.toml").write_text(text.replace("splits.train", "splits.test"))
    assert "has no split 'train', only test, val" in mrcnn("train", "--data", prepared).error


def test_json_reports_the_run_and_nothing_else(mrcnn, own_data, tmp_path):
    words = [*own_data, "--out", "here", "--json", *assignments(*TINY, "train.steps=1")]
    outcome = mrcnn("train", "nuclei_scratch", *words)
    assert outcome.json["run"] == "here"
    assert outcome.json["step"] == 1
    assert outcome.json["metrics"]["objects"] == 8
    assert outcome.json["memory_mb"] > 100


def test_without_validation_images_nothing_is_evaluated_and_it_says_so(mrcnn, shapes):
    words = ["--train", shapes, shapes / "shapes.json", "--out", "here", *assignments(*TINY, "train.steps=1")]
    outcome = mrcnn("train", "nuclei_scratch", *words)
    assert outcome.status == 0
    assert "none to evaluate on" in outcome.err
    assert "not evaluated: there are no validation images; give them with --val DIR ANNOTATIONS" in outcome.err
    assert Path("here/best.safetensors").exists()


def test_a_run_is_gone_on_with_and_says_what_changed(mrcnn, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "my run")
    outcome = mrcnn("train", "--resume", "my run", "--set", "train.steps=4")
    assert outcome.status == 0
    assert "changed: train.steps: 2 -> 4\n" in outcome.err
    assert "--weights 'my run'" in outcome.err  # as a shell needs it
    assert train_steps(tmp_path / "my run") == [1, 2, 3, 4]


def test_going_on_through_the_link_to_the_latest_run_keeps_the_link(mrcnn, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "runs" / "one")
    (tmp_path / "runs" / "latest").symlink_to("one")
    assert mrcnn("train", "--resume", "runs/latest", "--set", "train.steps=3").status == 0
    assert os.readlink(tmp_path / "runs" / "latest") == "one"
    assert train_steps(tmp_path / "runs" / "one") == [1, 2, 3]


def test_a_finished_run_has_nothing_left_to_do(mrcnn, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    outcome = mrcnn("train", "--resume", "run")
    assert outcome.status == 0
    assert "nothing left to do: all 2 steps are done; more: --set train.steps=4" in outcome.err
    assert rows(tmp_path / "run") == rows(trained)


def test_an_evaluation_that_was_interrupted_is_done_when_the_run_goes_on(mrcnn, trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    lines = (trained / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    outcome = mrcnn("train", "--resume", "run")
    assert outcome.status == 0
    assert rows(folder) == rows(trained)
    assert "box" in outcome.out


def test_resume_takes_everything_from_the_run(mrcnn, trained):
    outcome = mrcnn("train", "nuclei", "--resume", trained)
    assert outcome.status == 2
    assert outcome.error.startswith("--resume takes recipe, data, weights and folder from the run")


@pytest.mark.parametrize("missing", ["config.toml", "state.safetensors"])
def test_a_folder_that_is_no_run_cannot_be_gone_on_with(mrcnn, trained, tmp_path, missing):
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / missing).unlink()
    outcome = mrcnn("train", "--resume", "run")
    assert outcome.status == 1
    assert outcome.error == f"run: no run to go on with: there is no {missing} in it; 'mrcnn train' starts a new one"


def test_a_run_is_not_written_over(mrcnn, trained, own_data):
    outcome = mrcnn("train", "nuclei_scratch", *own_data, "--out", trained)
    assert outcome.status == 1
    assert "holds a run already; go on with --resume" in outcome.error


def test_repeats_are_runs_of_their_own_with_mean_and_spread(mrcnn, own_data):
    settings = assignments(*TINY, "train.steps=2")
    outcome = mrcnn("train", "nuclei_scratch", *own_data, "--out", "three", "--repeats", 3, "--json", *settings)
    assert outcome.status == 0, outcome.err
    assert outcome.json["runs"] == ["three/seed-0", "three/seed-1", "three/seed-2"]
    values = [rows(Path(folder))[-1]["box_ar100"] for folder in outcome.json["runs"]]
    spread = outcome.json["metrics"]["box_ar100"]
    assert spread["mean"] == pytest.approx(sum(values) / 3)
    assert spread["deviation"] == pytest.approx(statistics.stdev(values))
    assert (spread["lowest"], spread["highest"]) == (min(values), max(values))
    assert json.loads(Path("three/repeats.json").read_text())["metrics"] == outcome.json["metrics"]
    alone = mrcnn("train", "nuclei_scratch", *own_data, "--out", "one", *settings, "--set", "train.seed=1")
    assert alone.status == 0
    assert Path("one/last.safetensors").read_bytes() == Path("three/seed-1/last.safetensors").read_bytes()
    assert "holds a run already" in mrcnn("train", "nuclei_scratch", *own_data, "--out", "three").error


def test_repeats_are_gone_on_with_and_more_can_follow(mrcnn, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "group" / "seed-0")
    outcome = mrcnn("train", "--resume", "group", "--repeats", 2)
    assert outcome.status == 0, outcome.err
    assert "nothing left to do: all 2 steps are done" in outcome.err
    assert train_steps(tmp_path / "group" / "seed-1") == [1, 2]
    assert re.search(r"^box_ap +\d\.\d{3} +\d\.\d{3}", outcome.out, re.M)
    assert "no runs to go on with" in mrcnn("train", "--resume", trained, "--repeats", 2).error


def test_training_that_is_enough_says_why_and_what_learnt(mrcnn, own_data):
    settings = (*TINY, "train.steps=9", "train.evaluate_every=1", "train.patience=2", "train.least_gain=1.0")
    layers = ("train.layers=heads", "train.learning_rate_images=4", "train.best_by=loss")
    outcome = mrcnn("train", "nuclei_scratch", *own_data, "--out", "here", *assignments(*settings, *layers))
    assert outcome.status == 0, outcome.err
    assert "rate     0.0005: 0.001 for 4 images, scaled to 2\n" in outcome.err
    learning, total = re.search(r"^layers   heads: ([\d,]+) of ([\d,]+) parameters learn$", outcome.err, re.M).groups()
    assert int(learning.replace(",", "")) < int(total.replace(",", ""))
    message = r"^enough   loss has not become better in 2 evaluations \(train.patience\); the best is \d+\.\d+, after"
    assert re.search(message, outcome.err, re.M)
    assert train_steps(Path("here")) == [1, 2, 3]
    again = mrcnn("train", "--resume", "here")
    assert re.search(message, again.err, re.M)
    assert "nothing left to do" not in again.err


def test_another_batch_than_the_recipes_gets_a_hint_of_the_rate(mrcnn, own_data):
    words = assignments(*TINY, "train.steps=1", "train.optimizer=sgd")
    outcome = mrcnn("train", "nuclei_scratch", *own_data, "--out", "here", *words)
    assert "meant for 4 images, and 2 want 0.0005: --set train.learning_rate_images=4" in outcome.err


def interrupt(arguments, ready):
    """The exit status and stderr of `mrcnn` in a process that gets a Ctrl-C, as from a terminal, once it is ready."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mrcnn_cli", *map(str, arguments)]
    with open("stderr.txt", "w") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=errors, env=environment, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 300
        while not ready(process, Path("stderr.txt").read_text()):
            assert process.poll() is None, Path("stderr.txt").read_text()
            assert time.monotonic() < deadline, Path("stderr.txt").read_text()
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        return process.wait(timeout=300), Path("stderr.txt").read_text()
    finally:
        process.kill()


def test_an_interrupted_run_saves_says_how_to_go_on_and_goes_on(mrcnn, own_data):
    words = ["train", "nuclei_scratch", *own_data, "--out", "here"]
    settings = assignments(*TINY, "data.workers=1", "train.steps=5000")
    status, text = interrupt([*words, *settings], lambda _, text: "step 1/5000" in text)
    assert status == 130
    assert "Traceback" not in text
    stopped = int(re.search(r"^stopped after step (\d+) of 5000, everything is saved; ", text, re.M)[1])
    assert text.endswith("go on with: mrcnn train --resume here\n")
    assert train_steps(Path("here")) == list(range(1, stopped + 1))
    outcome = mrcnn("train", "--resume", "here", "--set", f"train.steps={stopped + 2}", "--set", "data.workers=0")
    assert outcome.status == 0
    assert train_steps(Path("here")) == list(range(1, stopped + 3))
    assert rows(Path("here"))[-1]["kind"] == "evaluation"


def test_an_interrupt_while_torch_is_being_imported_is_one_plain_line(mrcnn, own_data):
    def importing(process, _):
        return "libtorch_cpu" in Path(f"/proc/{process.pid}/maps").read_text()

    status, text = interrupt(["train", "nuclei_scratch", *own_data, "--out", "here"], importing)
    assert (status, text) == (130, "error: interrupted\n")
    assert not Path("here").exists()


def ends_with(error):
    """A stand-in for the training loop that does one step and then meets `error`."""

    def train(run, resume=False, should_stop=None):
        values = {"loss": 1.0, "learning_rate": 1e-3, "seconds": 0.1, "memory_mb": 100.0}
        yield Step("train", 3, values)
        raise error

    return train


def test_a_second_interrupt_says_where_the_saved_run_goes_on(mrcnn, trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "run")
    monkeypatch.setattr("mrcnn_cli.engine.train.train", ends_with(KeyboardInterrupt()))
    outcome = mrcnn("train", "--resume", "run", "--set", "train.steps=9")
    assert outcome.status == 130
    assert outcome.error == "interrupted at step 3; go on with: mrcnn train --resume run"


def test_a_second_interrupt_before_anything_was_saved_promises_nothing(mrcnn, own_data, monkeypatch):
    monkeypatch.setattr("mrcnn_cli.engine.train.train", ends_with(KeyboardInterrupt()))
    outcome = mrcnn("train", "nuclei_scratch", *own_data, "--out", "here", *assignments(*TINY))
    assert outcome.status == 130
    assert outcome.error == "interrupted, before anything was saved"


def test_too_little_memory_is_one_line_that_names_the_key(mrcnn, own_data, monkeypatch):
    monkeypatch.setattr("mrcnn_cli.engine.train.train", ends_with(torch.OutOfMemoryError("CUDA out of memory")))
    outcome = mrcnn("train", "nuclei_scratch", *own_data, "--out", "here", *assignments(*TINY))
    assert outcome.status == 1
    assert "out of memory at step 4; take a smaller train.batch_size (now 2)" in outcome.error


def test_a_full_disk_loses_nothing_that_was_saved(mrcnn, trained, tmp_path, monkeypatch):
    folder = shutil.copytree(trained, tmp_path / "run")
    flush = os.fsync

    def full(file):
        if os.fstat(file).st_size > 100_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(file)

    monkeypatch.setattr(os, "fsync", full)
    outcome = mrcnn("train", "--resume", "run", "--set", "train.steps=3")
    assert outcome.status == 1
    assert "state.safetensors: cannot be written: No space left on device" in outcome.error
    for name in ("last.safetensors", "best.safetensors", "state.safetensors"):
        assert (folder / name).read_bytes() == (trained / name).read_bytes()
    assert {path.name for path in folder.iterdir()} == {path.name for path in trained.iterdir()}
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert mrcnn("train", "--resume", "run", "--set", "train.steps=3").status == 0
    assert train_steps(folder) == [1, 2, 3]


def test_a_learning_rate_is_found_and_nothing_is_left(mrcnn, own_data, tmp_path):
    outcome = mrcnn("train", "nuclei_scratch", *own_data, "--find-lr", "--json", *assignments(*TINY))
    assert outcome.status == 0, outcome.err
    trials = outcome.json["trials"]
    assert outcome.json["learning_rate"] == pytest.approx(outcome.json["lowest_loss_at"] / 10)
    assert [trial["learning_rate"] for trial in trials] == sorted(trial["learning_rate"] for trial in trials)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_batch_is_found_that_fits(mrcnn, own_data, tmp_path):
    outcome = mrcnn("train", "nuclei_scratch", *own_data, "--find-batch", *assignments(*TINY))
    assert outcome.status == 0, outcome.err
    assert "take     --set train.batch_size=4 --set train.learning_rate_images=2" in outcome.err
    assert re.search(r"^ +4 +[\d,]+ MB +yes$", outcome.out, re.M)
    assert list(tmp_path.iterdir()) == []


def test_searches_stand_alone(mrcnn, trained):
    assert mrcnn("train", "--resume", trained, "--find-lr").status == 2
    assert mrcnn("train", "--find-batch", "--find-lr").status == 2
