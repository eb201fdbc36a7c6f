"""Progress on stderr: live on a terminal, a plain line now and then elsewhere."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from mrcnn_cli.commands.console import chatter, duration, say

LINE_STEPS, LINE_SECONDS = 20, 10.0  # a plain line at least so often
SMOOTHING = 0.95  # of losses and times, per step


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
    """The steps of a training run.

    Args:
        steps: the number of the last step.
        evaluates_after: whether an evaluation follows a step; said, because it takes a while.
    """

    def __init__(self, steps: int, evaluates_after: Callable[[int], bool]):
        self.steps = steps
        self.evaluates_after = evaluates_after
        self.smoothed: dict[str, Smoothed] = {}
        self.spoken_step: int | None = None
        self.spoken = time.monotonic()
        self.bar: Progress | None = None

    def __enter__(self) -> Self:
        if chatter.is_interactive:
            columns = (BarColumn(20), TextColumn("{task.description}", markup=False))
            self.bar = Progress(*columns, console=chatter, transient=True)
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
            return
        for name, value in step.values.items():
            if name.startswith("loss") or name == "seconds":
                self.smoothed.setdefault(name, Smoothed()).add(value)
        evaluates = self.evaluates_after(step.step)
        if self.bar is not None:
            shown = f"step {step.step}/{self.steps}  evaluating" if evaluates else "\n".join(self._lines(step))
            self.bar.update(self.bar.task_ids[0], completed=step.step, description=shown)
            return
        due = self.spoken_step is None or step.step - self.spoken_step >= LINE_STEPS or step.step == self.steps
        if due or evaluates or time.monotonic() - self.spoken >= LINE_SECONDS:
            self.spoken_step, self.spoken = step.step, time.monotonic()
            say("  ".join(self._lines(step)))
        if evaluates:
            say("evaluating")

    def _lines(self, step: Any) -> tuple[str, str]:
        """What fits into 80 columns beside the bar, and the losses one by one."""
        means = {name: smoothed.mean for name, smoothed in self.smoothed.items()}
        terms = ", ".join(
            f"{name.removeprefix('loss_').replace('_', ' ')} {mean:.3f}"
            for name, mean in means.items()
            if name.startswith("loss_")
        )
        remaining = duration((self.steps - step.step) * means["seconds"])
        return (
            f"step {step.step}/{self.steps}  loss {means['loss']:.3f}  {means['seconds']:.2f} s/step  "
            f"{remaining} left  {step.values['memory_mb']:,.0f} MB",
            f"{terms}; learning rate {step.values['learning_rate']:.1e}",
        )

    def _print(self, line: str, style: str = "") -> None:
        """A line that stays, above the bar."""
        (self.bar.console if self.bar is not None else chatter).print(Text(line, style=style))


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
    return "  ".join(parts) or "no objects to evaluate on"
