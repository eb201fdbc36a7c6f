"""What a run's folder says of it, in each state that it can be left in."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from mrcnn_cli.engine.files import claimed, is_claimed
from mrcnn_cli.engine.run import prepare, read_config
from mrcnn_cli.engine.runs import list_runs, summary
from mrcnn_cli.engine.train import train
from mrcnn_cli.errors import UserError


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny):
    """A run of four steps with two evaluations."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    overrides = {**tiny, "train.evaluate_every": 2}
    list(train(prepare(read_config("nuclei_scratch", overrides), folder, "cpu")))
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of it with only so many rows."""

    def make(rows, name="run"):
        shutil.copytree(finished, tmp_path / name)
        lines = (finished / "metrics.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / name / "metrics.jsonl").write_text("".join(lines[:rows]))
        return tmp_path / name

    return make


def test_a_finished_run_is_done_and_tells_its_best_scores(copy):
    folder = copy(6)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    better = rows[2] | {"mask_ap": 0.75}  # the earlier evaluation
    assert rows[2]["kind"] == "evaluation"
    rows[2] = better
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = summary(folder)
    assert (run.state, run.step, run.steps) == ("done", 4, 4)
    assert run.scores["mask_ap"] == 0.75
    assert run.recipe == "mask_rcnn, resnet18"
    assert run.megabytes == pytest.approx(sum(path.stat().st_size for path in folder.iterdir()) / 1e6)


@pytest.mark.parametrize("rows", [0, 2, 5])
def test_a_run_with_steps_or_an_evaluation_to_do_is_interrupted(copy, rows):
    run = summary(copy(rows))
    assert run.state == "interrupted"
    assert run.step == {0: 0, 2: 2, 5: 4}[rows]


def test_a_run_that_kept_a_step_that_is_not_finite_is_broken_until_it_goes_on_beyond(copy):
    folder = copy(2)
    (folder / "step-3.nonfinite.safetensors").write_bytes(b"")
    assert summary(folder).state == "broken"
    further = copy(4, "further")
    (further / "step-3-rank-1.nonfinite.safetensors").write_bytes(b"")
    assert summary(further).state == "interrupted"


def test_a_run_whose_recipe_cannot_be_read_is_broken(copy):
    folder = copy(6)
    (folder / "config.toml").write_text("[model")
    assert (summary(folder).state, summary(folder).steps) == ("broken", None)


HOLD = "import sys, time; from pathlib import Path; from mrcnn_cli.engine.files import claimed\n"
HOLD += "with claimed(Path(sys.argv[1])): print('mine', flush=True); time.sleep(60)"


def test_a_run_is_running_as_long_as_its_process_lives_however_that_ends(copy, tiny):
    folder = copy(2)
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "mine\n"
        assert summary(folder).state == "running"
        with pytest.raises(UserError, match="run: another process trains this run"):
            next(train(prepare(read_config("nuclei_scratch", tiny), folder, "cpu"), resume=True))
        assert summary(folder).step == 2  # nothing was touched
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert summary(folder).state == "interrupted"


def test_a_claim_ends_though_a_forked_process_goes_on(tmp_path):
    with claimed(tmp_path):
        child = os.fork()
        if not child:
            time.sleep(30)
            os._exit(0)
        assert is_claimed(tmp_path)
    try:
        assert not is_claimed(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_runs_are_listed_once_and_the_newest_first(copy, tmp_path):
    (tmp_path / "runs" / "deeper").mkdir(parents=True)
    for age, (name, rows) in enumerate([("runs/new", 6), ("runs/deeper/old", 2)]):
        for path in copy(rows, name).iterdir():
            os.utime(path, (1e9 - age * 1000, 1e9 - age * 1000))
    (tmp_path / "runs" / "latest").symlink_to("new", target_is_directory=True)
    assert [run.folder.name for run in list_runs(tmp_path / "runs")] == ["new", "old"]
    assert [run.state for run in list_runs(tmp_path / "runs" / "new")] == ["done"]
    with pytest.raises(UserError, match="gone: no such folder; 'mrcnn train' makes runs/"):
        list_runs(tmp_path / "gone")
