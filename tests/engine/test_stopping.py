"""What follows from evaluations: the best weights, the falling rate, the end."""

import json

import pytest
import torch

from mrcnn_cli.data.loader import evaluation_batches, validation_batches
from mrcnn_cli.engine import stopping
from mrcnn_cli.engine import train as training
from mrcnn_cli.engine.checkpoint import read_tensors, step_of
from mrcnn_cli.engine.evaluate import validation_losses
from mrcnn_cli.engine.optimizer import TrainConfig, learning_rate, scaling_hint
from mrcnn_cli.engine.run import prepare, read_config
from mrcnn_cli.engine.runs import summary
from mrcnn_cli.engine.train import Interrupted, Trainer, train
from mrcnn_cli.errors import UserError


def rows(*scores, name="mask_ap"):
    return [{"kind": "evaluation", "step": 10 * place, name: value} for place, value in enumerate(scores, 1)]


def config(**changes):
    return TrainConfig(evaluate_every=10, **changes)


def test_the_best_is_the_highest_metric_the_lowest_loss_and_the_earlier_of_equals():
    assert stopping.ranking(config(), rows(0.2, 0.5, None, 0.5, 0.4)) == [20, 40, 50, 10, 30]
    assert stopping.ranking(config(best_by="loss_box"), rows(0.2, 0.5, 0.1, name="loss_box")) == [30, 10, 20]
    both = [{**row, "box_ap50": 1 - row["mask_ap"]} for row in rows(0.2, 0.5)]
    assert stopping.ranking(config(best_by="box_ap50"), both) == [10, 20]


def test_an_unknown_metric_is_an_error_that_tells_the_known_ones():
    with pytest.raises(UserError, match=r"train.best_by = 'map': no such metric of this model; it has mask_ap"):
        stopping.check_metric(config(best_by="map"), rows(0.5)[0])


def test_evaluations_of_before_the_metric_was_asked_for_are_behind_all_others(tmp_path, prepared):
    list(train(prepared(tmp_path / "run", train__evaluate_every=2)))
    more = {"train__evaluate_every": 2, "train__best_by": "loss", "train__steps": 6}
    list(train(prepared(tmp_path / "run", **more), resume=True))
    assert step_of(tmp_path / "run" / "best.safetensors") == 6


@pytest.mark.parametrize(
    ("scores", "gain", "over"),
    [
        ((0.1, 0.2, 0.3), 0.0, False),
        ((0.3, 0.2), 0.0, False),
        ((0.3, 0.2, 0.3), 0.0, True),
        ((0.1, 0.3, 0.2, 0.31, 0.2), 0.0, False),
        ((0.1, 0.3, 0.305, 0.309), 0.01, True),
        ((0.1, 0.3, 0.305, 0.311), 0.01, False),
        ((None, None), 0.0, True),
        ((), 0.0, False),
    ],
)
def test_it_is_over_when_patience_brought_nothing(scores, gain, over):
    assert stopping.is_over(config(patience=2, least_gain=gain), rows(*scores)) is over
    assert stopping.is_over(config(least_gain=gain), rows(*scores)) is False


def test_the_rate_falls_at_a_plateau_as_torchs_own_schedule_has_it():
    scores = [0.1, 0.2, 0.2, 0.15, 0.3, 0.3, 0.1, 0.2, 0.25, 0.1, 0.31, 0.3, 0.3, 0.3]
    settings = config(schedule="plateau", plateau_patience=2, learning_rate=1.0, warmup_steps=0, decay_factor=0.5)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    # Torch lets the rate fall when more than `patience` were in vain.
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", 0.5, patience=1, threshold=0.0)
    falls = []
    for count, score in enumerate(scores, 1):
        reference.step(score)
        rate = learning_rate(settings, 0, stopping.decays(settings, rows(*scores[:count])))
        assert rate == optimizer.param_groups[0]["lr"]
        falls.append(rate)
    assert min(falls) < 0.2


@pytest.mark.parametrize("keys", [{"patience": 2}, {"schedule": "plateau"}])
def test_what_evaluations_decide_needs_evaluations(keys):
    with pytest.raises(ValueError, match="needs evaluations on the way: set evaluate_every"):
        TrainConfig(**keys)
    with pytest.raises(ValueError, match="give one of them"):
        TrainConfig(evaluate_every=5, evaluate_epochs=1)


def test_the_learning_rate_is_scaled_to_the_batch():
    scaled = TrainConfig(learning_rate=0.02, learning_rate_images=16, batch_size=2, warmup_steps=0)
    assert learning_rate(scaled, 0) == pytest.approx(0.0025)
    plain = TrainConfig(learning_rate=0.02, batch_size=16)
    assert scaling_hint(plain, plain) is None
    assert "--set train.learning_rate_images=16" in scaling_hint(plain, plain.model_copy(update={"batch_size": 2}))
    assert scaling_hint(plain, plain.model_copy(update={"batch_size": 2, "learning_rate": 0.01})) is None
    assert scaling_hint(plain, scaled) is None


def scripted(monkeypatch, *scores):
    """Evaluations that find these scores."""
    left = iter(scores)
    monkeypatch.setattr(training, "evaluate", lambda *a, **k: ({"mask_ap": next(left), "box_ap": 0.5}, []))


def test_training_ends_when_patience_is_out_and_goes_on_when_asked(tmp_path, prepared, monkeypatch):
    scripted(monkeypatch, 0.2, 0.3, 0.1, 0.3, 0.5, 0.4)
    settings = {"train__steps": 6, "train__evaluate_every": 1, "train__patience": 2}
    steps = list(train(prepared(tmp_path / "run", **settings)))
    assert [step.step for step in steps if step.kind == "train"] == [1, 2, 3, 4]
    assert step_of(tmp_path / "run" / "last.safetensors") == 4
    assert step_of(tmp_path / "run" / "best.safetensors") == 2
    assert summary(tmp_path / "run").state == "done"
    assert list(train(prepared(tmp_path / "run", **settings), resume=True)) == []
    more = list(train(prepared(tmp_path / "run", **{**settings, "train__patience": 3}), resume=True))
    assert [step.step for step in more if step.kind == "train"] == [5, 6]
    assert step_of(tmp_path / "run" / "best.safetensors") == 5


def test_a_plateau_is_remembered_by_a_run_that_goes_on(tmp_path, prepared, monkeypatch):
    scores = (0.5, 0.4, 0.3, 0.2, 0.1, 0.1)
    settings = {
        "train__steps": 6,
        "train__evaluate_every": 1,
        "train__schedule": "plateau",
        "train__plateau_patience": 2,
    }
    scripted(monkeypatch, *scores)
    whole = list(train(prepared(tmp_path / "whole", **settings)))
    rates = [step.values["learning_rate"] for step in whole if step.kind == "train"]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-3, 1e-4, 1e-4, 1e-5])
    scripted(monkeypatch, *scores)
    seen = []
    with pytest.raises(Interrupted):
        for step in train(prepared(tmp_path / "parts", **settings), should_stop=lambda: len(seen) == 7):
            seen.append(step)
    seen += list(train(prepared(tmp_path / "parts", **settings), resume=True))
    assert [step.values["learning_rate"] for step in seen if step.kind == "train"] == rates
    assert (tmp_path / "parts" / "last.safetensors").read_bytes() == (
        tmp_path / "whole" / "last.safetensors"
    ).read_bytes()


def test_the_best_weights_are_kept_as_many_as_asked_for(tmp_path, prepared, monkeypatch):
    scripted(monkeypatch, 0.2, 0.5, 0.1, 0.4, 0.6, 0.3)
    list(train(prepared(tmp_path / "run", train__steps=6, train__evaluate_every=1, train__keep_best=3)))
    found = {path.name: step_of(path) for path in (tmp_path / "run").glob("best*.safetensors")}
    assert found == {"best.safetensors": 5, "best-2.safetensors": 2, "best-4.safetensors": 4}


def test_evaluations_come_at_the_end_of_epochs(tmp_path, prepared):
    run = prepared(tmp_path / "run", train__steps=11, train__evaluate_epochs=2)  # 5 images, batches of 2
    assert [step for step in range(1, 12) if training.evaluation_is_due(run, step)] == [5, 10, 11]


@pytest.mark.parametrize("average", [0.9, None])
def test_the_validation_loss_changes_no_bit_of_training(tmp_path, prepared, average):
    digests = []
    for validates in (False, True):
        folder = tmp_path / f"run-{validates}"
        run = prepared(folder, train__evaluate_every=1, train__validation_loss=validates, train__average=average)
        steps = list(train(run))
        digests.append(read_tensors(folder / "state.safetensors")[0])
        losses = [step.values.get("loss") for step in steps if step.kind == "evaluation"]
        assert all((loss is not None) == validates for loss in losses)
    assert digests[0].keys() == digests[1].keys()
    assert all(torch.equal(digests[0][name], digests[1][name]) for name in digests[0])
    row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    terms = ["loss_rpn_objectness", "loss_rpn_box", "loss_class", "loss_box", "loss_mask"]
    assert row["loss"] == pytest.approx(sum(row[term] for term in terms))


def test_the_validation_loss_is_the_mean_of_each_images_losses(tmp_path, prepared):
    run = prepared(tmp_path / "run", model__fpn__norm="none")
    model = Trainer(run).model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    found = validation_losses(model, run.config, run.val, run.device)
    assert found == validation_losses(model, run.config, run.val, run.device)
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    totals = [
        sum(model(images, targets).values()).item()
        for images, targets in validation_batches(run.val, run.config.data, batch_size=1, seed=0)
    ]
    assert found["loss"] == pytest.approx(sum(totals) / len(totals), rel=1e-5)


def test_the_running_average_of_retinanets_positives_is_left_alone(tmp_path, tiny):
    settings = {key: value for key, value in tiny.items() if not key.startswith(("model.", "train."))}
    backbone = {"name": "resnet18", "width": 8, "norm": "batch_norm", "weights": "none"}
    settings |= {"model.backbone": backbone, "model.fpn.channels": 16, "data.augment.short_sides": ()}
    run = prepare(read_config("retinanet_r50_fpn_1x", settings), tmp_path / "run", "cpu")
    model = Trainer(run).model
    before = model.retina_head.loss_normalizer.clone()
    validation_losses(model, run.config, run.val, run.device)
    assert torch.equal(model.retina_head.loss_normalizer, before)


def test_pictures_of_the_validation_loss_are_not_varied(tmp_path, prepared):
    run = prepared(tmp_path / "run", data__augment__flip=1.0)
    [first] = list(validation_batches(run.val, run.config.data, batch_size=2, seed=0))
    [again] = list(validation_batches(run.val, run.config.data, batch_size=2, seed=0))
    assert torch.equal(first[0].pixels, again[0].pixels)
    [[seen, _]] = list(evaluation_batches(run.val, run.config.data, batch_size=2))
    assert torch.equal(seen.pixels, first[0].pixels)
    assert [target.seed for target in first[1]] == [target.seed for target in again[1]]
