"""Steps in TensorBoard's, Weights & Biases' and MLflow's logs; the latter two as recorded stand-ins of their API."""

import importlib.util
import json
import math
import subprocess
import sys
import types
import typing

import pytest

from mrcnn_cli.engine.logs import LOGS, logged, numbers
from mrcnn_cli.engine.optimizer import TrainConfig
from mrcnn_cli.engine.run import prepare, read_config
from mrcnn_cli.engine.train import Step, train
from mrcnn_cli.errors import UserError

STEPS = [
    Step("train", 3, {"loss": 2.0, "loss_box": 0.5, "learning_rate": 1e-3}),
    Step("evaluation", 3, {"box_ap": 0.25, "mask_ap": None, "classes": {"a b#": {"box_ap": 0.5}}, "images": 4}),
]
EXPECTED = {
    "train/loss": 2.0,
    "train/loss_box": 0.5,
    "train/learning_rate": 1e-3,
    "evaluation/box_ap": 0.25,
    "evaluation/classes/a b#/box_ap": 0.5,
    "evaluation/images": 4.0,
}


@pytest.fixture
def run(tiny, tmp_path):
    def make(*names):
        return prepare(read_config("nuclei_scratch", {**tiny, "train.log": list(names)}), tmp_path / "run", "cpu")

    return make


class Recorder(types.ModuleType):
    """A module that remembers the calls of its functions, and of what they return."""

    def __init__(self, name, calls):
        super().__init__(name)
        self.__spec__ = importlib.util.spec_from_loader(name, None)
        self.calls = calls

    def __getattr__(self, name):
        def call(*arguments, **named):
            self.calls.append((name, arguments, named))
            return self

        return call


@pytest.fixture
def calls(monkeypatch):
    """name -> the calls that its stand-in got."""
    found = {name: [] for name in LOGS}
    for name, those in found.items():
        monkeypatch.setitem(sys.modules, name, Recorder(name, those))
    board = Recorder("torch.utils.tensorboard", found["tensorboard"])
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    sys.modules["wandb"].id = "id7"
    sys.modules["mlflow"].info = types.SimpleNamespace(run_id="id8")
    return found


def test_the_recipe_knows_the_logs_that_there_are():
    [names, _] = typing.get_args(TrainConfig.model_fields["log"].annotation)
    assert set(typing.get_args(names)) == set(LOGS)


def test_numbers_are_named_by_their_path_and_what_is_none_is_left_out():
    values = {"a": 1, "b": {"c": 0.5, "d": math.nan, "e": None}, "f": "word", "g": True, "h": math.inf}
    assert dict(numbers(values, "x")) == {"x/a": 1.0, "x/b/c": 0.5}


def test_without_logs_the_steps_pass_through_and_nothing_is_imported():
    program = (
        "import sys\nfrom mrcnn_cli.engine import logs\n"
        "assert not {'tensorboard', 'wandb', 'mlflow'} & {name.partition('.')[0] for name in sys.modules}"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_tensorboard_gets_each_number_and_is_told_where_a_resumed_run_goes_on(run, calls):
    assert list(logged(run("tensorboard"), STEPS)) == STEPS
    made, text, *rest, closed = calls["tensorboard"]
    assert made[0] == "SummaryWriter"
    assert made[1][0].endswith("run/tensorboard")
    assert made[2] == {"purge_step": 3}
    assert text[0] == "add_text"
    assert 'name = "mask_rcnn"' in text[1][1]
    assert [call[1] for call in rest] == [(name, value, 3) for name, value in EXPECTED.items()]
    assert closed[0] == "close"


def test_weights_and_biases_gets_the_recipe_and_each_number_and_the_same_run_again(run, calls, tmp_path):
    list(logged(run("wandb"), STEPS))
    made, *rest, closed = calls["wandb"]
    assert made[0] == "init"
    assert made[2]["id"] is None
    assert made[2]["config"]["train"]["batch_size"] == 2
    assert [(name, named) for name, _, named in rest] == [("log", {"step": 3})] * 2
    assert {key: value for _, [values], _ in rest for key, value in values.items()} == EXPECTED
    assert closed[0] == "finish"
    list(logged(run("wandb"), STEPS))
    assert [named["id"] for name, _, named in calls["wandb"] if name == "init"] == [None, "id7"]
    assert json.loads((tmp_path / "run" / "logs.json").read_text()) == {"wandb": "id7"}


def test_mlflow_gets_names_that_it_takes_and_the_same_run_again(run, calls):
    list(logged(run("mlflow"), STEPS))
    list(logged(run("mlflow"), STEPS))
    started = [named for name, _, named in calls["mlflow"] if name == "start_run"]
    assert started == [{"run_id": None, "run_name": "run"}, {"run_id": "id8", "run_name": None}]
    sent = {key: v for name, [*a], _ in calls["mlflow"] if name == "log_metrics" for key, v in a[0].items()}
    assert sent == {name.replace("#", "_"): value for name, value in EXPECTED.items()}
    assert [name for name, _, _ in calls["mlflow"]].count("end_run") == 2


def test_logs_are_closed_when_training_ends_early(run, calls):
    def failing():
        yield STEPS[0]
        raise UserError("full")

    with pytest.raises(UserError, match="full"):
        list(logged(run("tensorboard", "wandb"), failing()))
    assert calls["tensorboard"][-1][0] == "close"
    assert calls["wandb"][-1][0] == "finish"


@pytest.mark.parametrize("name", LOGS)
def test_a_log_that_is_not_installed_is_said_before_the_first_step(run, monkeypatch, name):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None if package == name else find(package))
    expected = rf"train.log: {name} is not installed; run: pip install 'mrcnn-cli\[{name}\]'"
    with pytest.raises(UserError, match=expected):
        next(logged(run(name), iter(STEPS)))


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_itself_reads_what_training_wrote(run, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    prepared = run("tensorboard")
    steps = list(logged(prepared, train(prepared)))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert losses == [
        (step.step, pytest.approx(step.values["loss"], rel=1e-6)) for step in steps if step.kind == "train"
    ]
    assert events.Scalars("evaluation/mask_ap")[0].step == 4
    # Steps that are done again take the place of those that were there.
    again = list(logged(prepared, [Step("train", 3, {"loss": 7.0})]))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")][2:] == [(3, again[0].values["loss"])]
