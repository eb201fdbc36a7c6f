"""The list of runs, as people and programs read it."""

import shutil


def test_runs_are_listed_with_state_steps_scores_and_size(mrcnn, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "runs" / "one")
    outcome = mrcnn("runs")
    assert outcome.status == 0
    head, line = outcome.out.splitlines()
    assert head.split() == ["run", "state", "steps", "mask", "AP", "box", "AP", "model", "last", "written", "size"]
    assert line.split()[:3] == ["runs/one", "done", "2/2"]
    assert "mask_rcnn, resnet18" in line
    [run] = mrcnn("runs", "--json").json
    assert (run["run"], run["state"], run["step"], run["steps"]) == ("runs/one", "done", 2, 2)
    assert set(run["scores"]) == {"mask_ap", "box_ap"}


def test_a_folder_without_runs_is_said(mrcnn, tmp_path):
    (tmp_path / "empty").mkdir()
    outcome = mrcnn("runs", "empty")
    assert (outcome.status, outcome.out) == (0, "")
    assert "empty: no runs; 'mrcnn train' makes one" in outcome.err
    assert mrcnn("runs", "empty", "--json").json == []
    refused = mrcnn("runs")
    assert refused.status == 1
    assert "runs: no such folder" in refused.error
