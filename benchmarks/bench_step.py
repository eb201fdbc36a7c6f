"""One training step of Mask R-CNN R50-FPN, two images of 512 x 512: ours and torchvision's, the same weights and data.

    python benchmarks/bench_step.py --threads 2 --rounds 5 --json benchmarks/results/step.json

Forward, backward and SGD, in turn in one process; batch norms use their statistics, as detectors are trained. The
losses are compared first, with mini-batches of every anchor and every proposal, so that no draw is left to chance.
Masks go in as run-length encodings (ours) or as images (torchvision). torchvision runs as it comes and channels last.
"""

import argparse
import json
from pathlib import Path

import torch
from torchvision_pair import CLASSES, EVERYTHING, LOSSES, config, report, report_peak, same_in_ours, torchvisions

from mrcnn_cli.engine.memory import keep_freed_memory
from tests.models.torchvision_oracle import batch, training

SIDE, IMAGES, OBJECTS = 512, 2, 12
CHANNELS_LAST = "torchvision, channels last"


def their_model(samples=None):
    return training(
        torchvisions(
            min_size=SIDE,
            rpn_batch_size_per_image=samples or 256,
            box_batch_size_per_image=samples or 512,
        )
    )


def compared(data):
    """The largest difference of the five losses by their size; raises unless they are the same."""
    their_images, their_targets, images, targets = data
    theirs = their_model(EVERYTHING)
    ours = training(same_in_ours(theirs, config(EVERYTHING)))
    with torch.no_grad():
        expected, losses = theirs(their_images, their_targets), ours(images, targets)
    worst = max(float((losses[name] / expected[there] - 1).abs()) for there, name in LOSSES.items())
    if not worst < 1e-3:
        raise SystemExit(f"the losses differ by {worst:.2g}: not timed: {expected} {losses}")
    return {"loss_difference": worst}


def contestants(data, names):
    """name -> a step; a model that is not named is not kept."""
    their_images, their_targets, images, targets = data
    theirs, works = their_model(), {}

    def step_of(model, *inputs):
        optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9)

        def step():
            loss = sum(model(*inputs).values())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

        return step

    if "mrcnn" in names:
        works["mrcnn"] = step_of(training(same_in_ours(theirs, config())), images, targets)
    if "torchvision" in names:
        works["torchvision"] = step_of(theirs, their_images, their_targets)
    if CHANNELS_LAST in names:
        last = their_model().to(memory_format=torch.channels_last)
        works[CHANNELS_LAST] = step_of(last, their_images, their_targets)
    return works


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--alone", help="take one step of this contestant, print its peak memory in MB and stop")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    data = batch(((SIDE, SIDE),) * IMAGES, CLASSES, OBJECTS)
    if arguments.alone:
        contestants(data, [arguments.alone])[arguments.alone]()
        report_peak()
        return
    facts = compared(data)
    print(f"losses within {facts['loss_difference']:.1e} of each other")
    works = contestants(data, ["mrcnn", "torchvision", CHANNELS_LAST])
    for work in works.values():
        work()
    result = report(__file__, works, arguments.rounds, {"images": [IMAGES, SIDE, SIDE], **facts})
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
