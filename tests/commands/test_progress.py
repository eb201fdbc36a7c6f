"""Progress: what is said, and how often."""

import io
import math
import re

import pytest

from mrcnn_cli.commands import console, progress
from mrcnn_cli.commands.progress import Activity, Counter, Curve, Smoothed, TrainingScreen
from mrcnn_cli.engine.train import Step


def step(number, loss=1.0, seconds=0.5):
    values = {"loss": loss, "loss_rpn_box": loss / 4, "learning_rate": 1e-3, "seconds": seconds, "memory_mb": 1234.5}
    return Step("train", number, values)


def never(number):
    return False


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def terminal(monkeypatch):
    """stderr as a terminal of 80 columns that remembers everything."""
    screen = io.StringIO()
    fake = console.Console(file=screen, force_terminal=True, force_interactive=True, width=80, color_system=None)
    monkeypatch.setattr(progress, "chatter", fake)
    return screen


def test_lines_come_every_twenty_steps_and_at_the_end(capsys, clock):
    with TrainingScreen(50, never) as screen:
        for number in range(1, 51):
            screen.update(step(number))
    steps = [line.split()[1] for line in capsys.readouterr().err.splitlines()]
    assert steps == ["1/50", "21/50", "41/50", "50/50"]


def test_slow_steps_are_said_every_ten_seconds(capsys, clock):
    with TrainingScreen(50, never) as screen:
        for number in range(1, 8):
            clock[0] += 5
            screen.update(step(number))
    steps = [line.split()[1] for line in capsys.readouterr().err.splitlines()]
    assert steps == ["1/50", "3/50", "5/50", "7/50"]


def test_a_line_says_loss_terms_rate_time_left_and_memory(capsys):
    with TrainingScreen(121, never) as screen:
        screen.update(step(1, loss=2.0))
    assert capsys.readouterr().err == (
        "step 1/121  loss 2.000  0.50 s/step  1:00 left  1,234 MB  rpn box 0.500; learning rate 1.0e-03\n"
    )


def test_an_evaluation_is_announced_and_its_metrics_are_said(capsys):
    metrics = {"box_ap": 0.25, "box_ap50": 0.5, "mask_ap": 0.125, "mask_ap50": None}
    with TrainingScreen(2, lambda number: number == 2) as screen:
        screen.update(step(2))
        screen.update(Step("evaluation", 2, metrics | {"mask_ap50": 0.375}))
    lines = capsys.readouterr().err.splitlines()
    assert lines[1:] == ["evaluating", "step 2/2  box AP 0.250, AP50 0.500  mask AP 0.125, AP50 0.375"]


def test_metrics_of_no_objects_are_said_in_words():
    assert progress.brief_metrics({"box_ap": None, "box_ap50": None}) == "no objects to evaluate on"


def test_a_terminal_gets_a_bar_that_fits_it(terminal):
    with TrainingScreen(90_000, never) as screen:
        for number in range(80_000, 80_003):
            screen.update(step(number))
        screen.bar.refresh()
    text = terminal.getvalue()
    assert "step 80002/90000  loss 1.000  0.50 s/step  1:23:19 left  1,234 MB" in text
    assert "learning rate 1.0e-03" in text


def test_a_terminal_shows_curves_rate_waiting_and_scores_within_its_width(terminal):
    with TrainingScreen(400, never, batch_size=8) as screen:
        for number in range(1, 301):
            made = step(number, loss=300.0 / number)
            screen.update(Step("train", number, made.values | {"data_seconds": 0.125}))
            if number % 100 == 0:
                screen.update(Step("evaluation", number, {"box_ap": number / 1000, "box_ap50": 0.5}))
        screen.update(step(301))
        before = len(terminal.getvalue())
        screen.bar.refresh()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()[before:])
    lines = [line.strip() for line in re.split(r"[\r\n]+", text)]
    assert all(len(line) <= 80 for line in lines)
    assert any(re.match(r"loss +█[▂▃▄▅▆▇█]*▁+ +\d+\.\d{3}$", line) for line in lines)
    assert any(re.match(r"rpn box +█", line) for line in lines)
    assert any(re.match(r"box AP +▁[▄▅]█ +0\.300$", line) for line in lines)
    assert "learning rate 1.0e-03, 16.0 images/s, 25% waiting for data" in "\n".join(lines)


def test_a_curve_keeps_little_and_shows_all():
    curve = Curve()
    for number in range(10_000):
        curve.add(float(number))
    assert len(curve.means) < 2 * progress.CURVE_WIDTH
    drawn = curve.drawn(40)
    assert len(drawn) == 40
    assert list(drawn) == sorted(drawn)
    assert set(drawn) == set("▁▂▃▄▅▆▇█")
    assert curve.last == 9999.0


def test_a_curve_of_one_value_or_none_is_drawn_too():
    curve = Curve()
    assert curve.drawn(10) == ""
    curve.add(3.0)
    assert curve.drawn(10) == "▁"
    curve.add(math.nan)
    assert curve.drawn(10) == "▁"


def test_a_smoothed_value_starts_at_the_first_and_follows_slowly():
    smoothed = Smoothed()
    smoothed.add(3.0)
    assert smoothed.mean == pytest.approx(3.0)
    for _ in range(200):
        smoothed.add(1.0)
    assert smoothed.mean == pytest.approx(1.0, abs=1e-3)
    smoothed.add(2.0)
    assert smoothed.mean == pytest.approx(1.05, abs=1e-3)


def test_counting_says_how_far_it_is_every_ten_seconds(capsys, clock):
    with Counter("evaluating", 30) as counter:
        for done in range(1, 31):
            clock[0] += 1
            counter.update(done, 30)
    assert capsys.readouterr().err == "evaluating 10/30\nevaluating 20/30\nevaluating 30/30\n"


def test_counting_on_a_terminal_is_a_bar(terminal):
    with Counter("predicting", 4) as counter:
        counter.update(3, 4)
        counter.bar.refresh()
    assert "predicting" in terminal.getvalue()
    assert "3/4" in terminal.getvalue()


def test_an_activity_is_said_now_and_then(capsys, clock):
    with Activity("timing") as activity:
        for number in range(1, 6):
            clock[0] += 4
            activity.say(f"timed {number}")
    assert capsys.readouterr().err == "timed 3\n"


def test_an_activity_on_a_terminal_is_a_line_that_goes_away(terminal):
    with Activity("timing") as activity:
        activity.say("timed nms")
    assert "timed nms" in terminal.getvalue()
