"""mrcnn train --find-lr and --find-batch: what is found before training, and how to ask for it."""

from typing import Any

from mrcnn_cli.commands.console import print_json, say, table
from mrcnn_cli.commands.progress import Activity, Counter

ROWS = 12  # of a table of trials


def find_learning_rate(run: Any, as_json: bool, steps: int = 100) -> None:
    """Shows the loss at ascending learning rates, and the rate to take."""
    from mrcnn_cli.engine.search import best_rate, rate_trials

    trials = []
    with Counter("trying learning rates", steps) as counter:
        for trial in rate_trials(run, steps=steps):
            trials.append(trial)
            counter.update(len(trials), steps)
    rate = best_rate(trials)
    lowest = min(trials, key=lambda trial: trial.smoothed).rate
    if as_json:
        rows = [{"learning_rate": t.rate, "loss": t.loss, "smoothed": t.smoothed} for t in trials]
        print_json({"learning_rate": rate, "lowest_loss_at": lowest, "trials": rows})
        return
    shown = trials[:: max(len(trials) // ROWS, 1)]
    table("Range test", ["learning rate", "loss (smoothed)"], [[f"{t.rate:.1e}", t.smoothed] for t in shown])
    say(f"found    the loss is lowest at {lowest:.1e}; a tenth of that is a good rate to begin with")
    if len(trials) == steps and trials[-1].smoothed < 1.1 * min(trial.smoothed for trial in trials):
        say("note     even the highest rate did no harm in so few steps")
    say(f"take     --set train.learning_rate={rate:.1e}")


def find_batch_size(run: Any, as_json: bool) -> None:
    """Shows what ever larger batches take, and the largest one that fits."""
    from mrcnn_cli.engine.memory import free_memory_mb
    from mrcnn_cli.engine.search import ROOM, batch_trials, largest_batch

    room = free_memory_mb(run.device) * ROOM
    trials = []
    with Activity("trying a batch of 1") as activity:
        for trial in batch_trials(run):
            trials.append(trial)
            took = "does not fit" if trial.memory_mb is None else f"takes {trial.memory_mb:,.0f} MB"
            activity.say(f"a batch of {trial.images} {took}")
    largest = largest_batch(trials)
    if as_json:
        rows = [{"images": t.images, "memory_mb": t.memory_mb, "measured": t.measured} for t in trials]
        print_json({"batch_size": largest, "room_mb": room, "trials": rows})
        return
    shown = [
        [t.images, "does not fit" if t.memory_mb is None else f"{t.memory_mb:,.0f} MB", "yes" if t.measured else "no"]
        for t in sorted(trials, key=lambda trial: trial.images)
    ]
    table(f"Batches of the largest pictures, room for {room:,.0f} MB", ["images", "memory", "measured"], shown)
    if largest == len(run.train):
        say("note     all training images fit at once; a larger batch was not tried")
    images = run.config.train.batch_size
    say(f"take     --set train.batch_size={largest} --set train.learning_rate_images={images}")
