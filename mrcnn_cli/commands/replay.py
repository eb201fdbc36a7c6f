"""mrcnn replay: a step that was not finite, taken again."""

import dataclasses
from pathlib import Path

import click

from mrcnn_cli.commands.console import Verb, device_option, json_option, print_json, say, say_error, table


@click.command("replay", cls=Verb, examples=["mrcnn replay runs/latest/step-120.nonfinite.safetensors"])
@click.argument("dump", type=click.Path(path_type=Path), metavar="FILE")
@device_option
@json_option
def command(dump: Path, device: str, as_json: bool) -> int:
    """Take a step again whose losses or gradients were not finite, and say where that begins.

    FILE is what training wrote when it stopped: weights, batch, optimiser and random numbers of that step. Data and
    images are not needed. The exit status is 0 if the same values are not finite in the same layer, else 1.
    """
    from mrcnn_cli.engine.dump import advice, describe, replay
    from mrcnn_cli.engine.run import choose_device, environment

    place = choose_device(device)
    kept = replay(dump, place)
    found = kept.found
    if as_json:
        clues = {name: dataclasses.asdict(clue) for name, clue in (("recorded", kept.recorded), ("found", found))}
        pictures = [[dataclasses.asdict(file) for file in image] for image in kept.pictures]
        print_json({"step": kept.step, "is_same": kept.is_same, **clues, "pictures": pictures})
    else:
        names = list(kept.recorded.losses)
        rows = [[name, str(kept.recorded.losses[name]), str(found.losses.get(name))] for name in names]
        table(f"Step {kept.step}", ["term", "recorded", "now"], rows)
        table(
            "Images",
            ["", "file", "annotations"],
            [
                [number + 1, file.path, ", ".join(map(str, file.annotations))]
                for number, image in enumerate(kept.pictures)
                for file in image
            ],
        )
        if found.symptom:
            say(f"{describe(found, kept.pictures)}; {advice(found, kept.pictures, kept.config)}")
    if kept.is_same:
        say("reproduced: the same values, in the same layer")
        return 0
    what = "something else is not finite" if found.symptom else "everything is finite"
    here = "; ".join(environment(place).splitlines())
    there = "; ".join(kept.environment.splitlines())
    say_error(f"not reproduced: {what} here ({here}); it was kept on: {there}")
    return 1
