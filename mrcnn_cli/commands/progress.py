"""Progress on stderr: live on a terminal, a plain line now and then elsewhere."""

import math
import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from types import TracebackType
from typing import Any, Self

from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from mrcnn_cli.commands.console import chatter, duration, say

LINE_STEPS, LINE_SECONDS = 20, 10.0  # a plain line at least so often
SMOOTHING = 0.95  # of losses and times, per step
BARS = "▁▂▃▄▅▆▇█"
NAME_WIDTH, CURVE_WIDTH = 14, 56  # characters
SCORES = {
    "mask AP": "mask_ap",
    "box AP": "box_ap",
    "keypoint AP": "keypoint_ap",
    "PQ": "pq",
    "AR1000": "proposal_ar1000",
}


class Counter:
    """How many of a known number are done.

    Args:
        what: what is being done, such as "evaluating".
        total: None: not known before the first `update`.
    """

    def __init__(self, what: str, total: int | None = None):
        self.what = what
        self.total = total
        self.bar: Progress | None = None
        self.spoken = time.monotonic()

    def __enter__(self) -> Self:
        if chatter.is_interactive:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, console=chatter, transient=True)
            self.bar.add_task(self.what, total=self.total)
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def update(self, done: int, total: int) -> None:
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=done, total=total)
        elif time.monotonic() - self.spoken >= LINE_SECONDS:
            self.spoken = time.monotonic()
            say(f"{self.what} {done}/{total}")


class Activity:
    """Something that takes a while, nobody knows how long.

    Args:
        what: what is being done, such as "timing".
    """

    def __init__(self, what: str):
        self.status = chatter.status(what) if chatter.is_interactive else None
        self.spoken = time.monotonic()

    def __enter__(self) -> Self:
        if self.status is not None:
            self.status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.status is not None:
            self.status.stop()

    def say(self, text: str) -> None:
        """How far it is."""
        if self.status is not None:
            self.status.update(Text(text))
        elif time.monotonic() - self.spoken >= LINE_SECONDS:
            self.spoken = time.monotonic()
            say(text)


class TrainingScreen:
    """The steps of a training run: on a terminal a bar with curves below it, elsewhere a line now and then.

    Args:
        steps: the number of the last step.
        evaluates_after: whether an evaluation follows a step; said, because it takes a while.
        batch_size: images of a step, for their rate; 0: not said.
    """

    def __init__(self, steps: int, evaluates_after: Callable[[int], bool], batch_size: int = 0):
        self.steps = steps
        self.evaluates_after = evaluates_after
        self.batch_size = batch_size
        self.smoothed: dict[str, Smoothed] = {}
        self.curves: dict[str, Curve] = {}
        self.spoken_step: int | None = None
        self.spoken = time.monotonic()
        self.bar: _CurvesBelow | None = None

    def __enter__(self) -> Self:
        if chatter.is_interactive:
            columns = (BarColumn(20), TextColumn("{task.description}", markup=False))
            self.bar = _CurvesBelow(*columns, console=chatter, transient=True)
            self.bar.add_task("preparing the first step", total=self.steps)
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def update(self, step: Any) -> None:
        """Show an `engine.train.Step`."""
        if step.kind == "skipped":
            self._print(f"skipped: {step.values['fault']} ({step.values['count']} so far)", style="yellow")
            return
        if step.kind == "evaluation":
            self._print(f"step {step.step}/{self.steps}  {brief_metrics(step.values)}")
            for name, key in SCORES.items():
                if step.values.get(key) is not None:
                    self.curves.setdefault(name, Curve()).add(step.values[key])
            return
        for name, value in step.values.items():
            if name.startswith("loss") or name in ("seconds", "data_seconds"):
                self.smoothed.setdefault(name, Smoothed()).add(value)
            if name.startswith("loss"):
                self.curves.setdefault(_words(name), Curve()).add(self.smoothed[name].mean)
        evaluates = self.evaluates_after(step.step)
        if self.bar is not None:
            first, rest = self._lines(step)
            shown = f"step {step.step}/{self.steps}  evaluating" if evaluates else first
            self.bar.below = self._curves(rest)
            self.bar.update(self.bar.task_ids[0], completed=step.step, description=shown)
            return
        due = self.spoken_step is None or step.step - self.spoken_step >= LINE_STEPS or step.step == self.steps
        if due or evaluates or time.monotonic() - self.spoken >= LINE_SECONDS:
            self.spoken_step, self.spoken = step.step, time.monotonic()
            first, rest = self._lines(step)
            terms = ", ".join(
                f"{_words(name)} {smoothed.mean:.3f}"
                for name, smoothed in self.smoothed.items()
                if name.startswith("loss_")
            )
            say(f"{first}  {terms}; {rest}")
        if evaluates:
            say("evaluating")

    def _lines(self, step: Any) -> tuple[str, str]:
        """What fits into 80 columns beside the bar, and what else there is to say of the pace."""
        means = {name: smoothed.mean for name, smoothed in self.smoothed.items()}
        remaining = duration((self.steps - step.step) * means["seconds"])
        facts = [f"learning rate {step.values['learning_rate']:.1e}"]
        if self.batch_size and means["seconds"] > 0:
            facts.append(f"{self.batch_size / means['seconds']:.1f} images/s")
        if "data_seconds" in means and means["seconds"] > 0:
            facts.append(f"{means['data_seconds'] / means['seconds']:.0%} waiting for data")
        return (
            f"step {step.step}/{self.steps}  loss {means['loss']:.3f}  {means['seconds']:.2f} s/step  "
            f"{remaining} left  {step.values['memory_mb']:,.0f} MB",
            ", ".join(facts),
        )

    def _curves(self, facts: str) -> Text:
        """Each loss and score: its name, how it went so far, and its last value."""
        width = max(min(chatter.width - NAME_WIDTH - 9, CURVE_WIDTH), 1)
        rows = [
            f"{name[:NAME_WIDTH]:<{NAME_WIDTH}} {curve.drawn(width):<{width}} {curve.last:7.3f}"
            for name, curve in self.curves.items()
        ]
        return Text("\n".join([*rows, facts]), no_wrap=True, overflow="crop")

    def _print(self, line: str, style: str = "") -> None:
        """A line that stays, above the bar."""
        (self.bar.console if self.bar is not None else chatter).print(Text(line, style=style))


class _CurvesBelow(Progress):
    """A bar, and text below it."""

    below = Text()

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield self.below


class Curve:
    """A series of numbers in little memory, drawn in one line.

    Neighbours are averaged as soon as there are more than twice as many as columns.
    """

    def __init__(self) -> None:
        self.means: list[float] = []
        self.each = 1  # values that one mean is of
        self.pending: list[float] = []
        self.last = 0.0

    def add(self, value: float) -> None:
        self.last = value
        self.pending.append(value)
        if len(self.pending) == self.each:
            self.means.append(sum(self.pending) / self.each)
            self.pending.clear()
        if len(self.means) == 2 * CURVE_WIDTH:
            self.means = [(one + other) / 2 for one, other in zip(self.means[::2], self.means[1::2], strict=True)]
            self.each *= 2

    def drawn(self, width: int) -> str:
        """At most so many characters, from the lowest bar for the least value to the highest for the greatest."""
        values = [value for value in self.means if math.isfinite(value)]
        columns = min(width, len(values))
        ends = [len(values) * place // columns for place in range(columns + 1)] if columns else [0]
        means = [sum(values[start:end]) / (end - start) for start, end in pairwise(ends)]
        low, high = min(means, default=0.0), max(means, default=0.0)
        top = len(BARS) - 1
        return "".join(BARS[round((mean - low) / (high - low) * top) if high > low else 0] for mean in means)


def _words(name: str) -> str:
    """A loss as a person would call it."""
    return name.removeprefix("loss_").replace("_", " ")


class Smoothed:
    """Exponential moving mean, right from its first value on."""

    def __init__(self) -> None:
        self.total = 0.0
        self.weight = 0.0

    def add(self, value: float) -> None:
        self.total = SMOOTHING * self.total + (1 - SMOOTHING) * value
        self.weight = SMOOTHING * self.weight + (1 - SMOOTHING)

    @property
    def mean(self) -> float:
        return self.total / self.weight


def brief_metrics(metrics: dict[str, Any]) -> str:
    """The main metrics in one line."""
    parts = []
    for kind in ("box", "mask", "keypoint"):
        if metrics.get(f"{kind}_ap") is not None:
            parts.append(f"{kind} AP {metrics[f'{kind}_ap']:.3f}, AP50 {metrics[f'{kind}_ap50']:.3f}")
    if metrics.get("pq") is not None:
        parts.append(f"PQ {metrics['pq']:.3f}")
    if metrics.get("proposal_ar1000") is not None:
        parts.append(f"proposals AR100 {metrics['proposal_ar100']:.3f}, AR1000 {metrics['proposal_ar1000']:.3f}")
    if metrics.get("loss") is not None:
        parts.append(f"loss {metrics['loss']:.3f}")
    return "  ".join(parts) or "no objects to evaluate on"
