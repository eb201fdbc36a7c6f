"""Training steps of a recipe as it is and with train.compile, in turn in one process on the same batches.

    python benchmarks/bench_compile.py nuclei --threads 2 --json benchmarks/results/compile.json

The losses of each step are compared first, and the compilation is timed apart. What counts is the median of the ratios;
a recipe that needs weights takes --set model.backbone.norm=batch_norm --set model.backbone.weights=none.
"""

import argparse
import datetime
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mrcnn_cli.data.loader import training_batches
from mrcnn_cli.engine.run import environment, prepare, read_config
from mrcnn_cli.engine.train import Trainer, training_step


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", default="nuclei")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=8, help="passes over the batches after those that compile")
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = [*arguments.set, "data.workers=0"]
    with tempfile.TemporaryDirectory() as folder:
        trainers, device = {}, None
        for name, wanted in (("plain", "false"), ("compiled", "true")):
            recipe = read_config(arguments.recipe, [*settings, f"train.compile={wanted}"])
            run = prepare(recipe, Path(folder) / name, arguments.device)
            trainers[name], device = Trainer(run), run.device
    config = run.config.train
    batches = [
        (images.to(device), [target.to(device) for target in targets])
        for images, targets in training_batches(
            run.train, run.config.data, batch_size=config.batch_size, seed=config.seed, steps=arguments.batches
        )
    ]
    first, worst = {"plain": 0.0, "compiled": 0.0}, 0.0
    for batch in batches:
        losses = {}
        for name, trainer in trainers.items():
            seconds, losses[name] = timed(trainer, batch, device)
            first[name] += seconds
        worst = max(worst, abs(losses["compiled"]["loss"] / losses["plain"]["loss"] - 1))
    if not worst < 1e-2:
        raise SystemExit(f"the losses differ by {worst:.2g}: not timed")
    seconds = {"plain": [], "compiled": []}
    for _ in range(arguments.rounds):
        for batch in batches:
            for name, trainer in trainers.items():
                seconds[name].append(timed(trainer, batch, device)[0])
    ratio = statistics.median(one / two for one, two in zip(seconds["plain"], seconds["compiled"], strict=True))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    print(
        f"{arguments.recipe}: a step takes {medians['plain']:.3f} s, compiled {medians['compiled']:.3f} s: "
        f"{ratio:.2f} times as fast; the first {len(batches)} took {first['plain']:.1f} and {first['compiled']:.1f} s "
        f"({graphs} compilations); losses differ by {worst:.1e}"
    )
    if arguments.json:
        arguments.json.write_text(
            json.dumps(
                {
                    "date": datetime.date.today().isoformat(),
                    "environment": environment(device).splitlines(),
                    "recipe": arguments.recipe,
                    "ratio": ratio,
                    "seconds": medians,
                    "first": first,
                    "compilations": graphs,
                    "loss_difference": worst,
                },
                indent=1,
            )
            + "\n"
        )


def timed(trainer, batch, device):
    """Seconds of a step, and what it gave."""
    began = time.perf_counter()
    values = training_step(trainer, *batch)  # which reads the losses, and so waits for the device
    return time.perf_counter() - began, values


if __name__ == "__main__":
    main()
