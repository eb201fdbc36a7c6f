"""Mixed precision: near the losses of float32, exact on resume, never by itself."""

import json

import pytest
import torch

from mrcnn_cli.engine import numerics
from mrcnn_cli.engine import train as training
from mrcnn_cli.engine.checkpoint import read_tensors
from mrcnn_cli.engine.resume import read_state
from mrcnn_cli.engine.run import prepare, read_config
from mrcnn_cli.engine.train import Interrupted, Trainer, train
from mrcnn_cli.errors import UserError

RECIPE = "nuclei_scratch"


def test_float32_is_what_every_recipe_begins_with():
    assert read_config("mask_rcnn_r50_fpn_1x").train.precision == "float32"


@pytest.mark.parametrize(("precision", "bits"), [("bfloat16", 8), ("float16", 11)])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_losses_are_near_those_of_float32_and_weights_stay_in_it(tmp_path, prepared, precision, bits, accumulate):
    exact = next(train(prepared(tmp_path / "exact", train__accumulate=accumulate))).values
    run = prepared(tmp_path / "run", train__precision=precision, train__accumulate=accumulate, train__steps=1)
    assert any(f"train.precision = {precision} on a CPU" in warning for warning in run.warnings)
    values = next(iter(list(train(run)))).values
    assert values["loss"] != exact["loss"]
    for name in ("loss", "loss_rpn_objectness", "loss_rpn_box", "loss_class", "loss_mask"):
        assert values[name] == pytest.approx(exact[name], rel=4 * 2**-bits), name
    tensors, _ = read_tensors(run.folder / "state.safetensors")
    assert {tensor.dtype for name, tensor in tensors.items() if "num_batches" not in name} == {torch.float32}


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_run_in_half_precision_resumes_to_the_same_bytes(tmp_path, prepared, precision, monkeypatch):
    build = numerics.gradient_scaler

    def changing(precision, device):
        scaler = build(precision, device)
        scaler.set_growth_interval(2)  # so that the scale is another one soon
        return scaler

    monkeypatch.setattr(training.numerics, "gradient_scaler", changing)
    list(train(prepared(tmp_path / "whole", train__precision=precision)))
    seen = []
    with pytest.raises(Interrupted):
        for step in train(prepared(tmp_path / "parts", train__precision=precision), should_stop=lambda: len(seen) == 3):
            seen.append(step)
    list(train(prepared(tmp_path / "parts", train__precision=precision), resume=True))
    for name in ("last.safetensors", "state.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    scaler = json.loads(read_state(tmp_path / "whole").about["scaler"])
    assert bool(scaler) == (precision == "float16")
    if scaler:
        assert scaler["scale"] != 65536.0


def test_a_gradient_that_overflows_skips_the_step_and_lowers_the_scale(tmp_path, prepared):
    trainer = Trainer(prepared(tmp_path / "run", train__precision="float16"))
    trainer.scaler.load_state_dict({**trainer.scaler.state_dict(), "scale": 2.0**80})
    run = trainer.run
    before = {name: tensor.clone() for name, tensor in trainer.model.named_parameters()}
    [(images, targets), *_] = training.training_batches(run.train, run.config.data, batch_size=2, seed=0, steps=1)
    training.training_step(trainer, images, targets)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.named_parameters())
    assert trainer.scaler.get_scale() == 2.0**79


def test_gradients_that_are_not_finite_without_any_scale_stop_the_training(tmp_path, prepared, monkeypatch):
    trainer = Trainer(prepared(tmp_path / "run", train__precision="float16"))
    trainer.scaler.load_state_dict({**trainer.scaler.state_dict(), "scale": 1.0})
    run = trainer.run
    [(images, targets), *_] = training.training_batches(run.train, run.config.data, batch_size=2, seed=0, steps=1)
    monkeypatch.setattr(torch.nn.utils, "get_total_norm", lambda *a, **k: torch.tensor(float("inf")))
    with pytest.raises(UserError, match="step 1: "):
        training.training_step(trainer, images, targets)


def test_the_precision_may_change_when_a_run_goes_on(tmp_path, prepared):
    list(train(prepared(tmp_path / "run", train__steps=1, train__precision="float16")))
    list(train(prepared(tmp_path / "run", train__steps=2), resume=True))
    list(train(prepared(tmp_path / "run", train__steps=3, train__precision="float16"), resume=True))
    assert read_state(tmp_path / "run").step == 3


def test_a_gpu_is_told_to_be_deterministic_and_a_cpu_needs_nothing(monkeypatch):
    told = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *a, **k: told.append((a, k)))
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    numerics.make_deterministic(True, torch.device("cpu"))
    assert told == []
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    numerics.make_deterministic(True, torch.device("cuda"))
    assert told == [((True,), {"warn_only": True})]
    assert torch.backends.cudnn.deterministic


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_two_runs_on_a_gpu_have_the_same_bytes(tmp_path, tiny, precision):
    for name in ("one", "two"):
        settings = {**tiny, "train.precision": precision}
        list(train(prepare(read_config(RECIPE, settings), tmp_path / name, "cuda")))
    assert (tmp_path / "one" / "last.safetensors").read_bytes() == (tmp_path / "two" / "last.safetensors").read_bytes()
