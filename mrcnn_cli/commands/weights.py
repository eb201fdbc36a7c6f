"""mrcnn weights: files of weights - what they are, and those of other systems in our form."""

from pathlib import Path

import click

from mrcnn_cli.commands.console import (
    Verb,
    Verbs,
    json_option,
    print_json,
    say,
    set_option,
    shown_path,
    table,
    typed_path,
)

command = Verbs(
    "weights",
    help="Convert weights of other systems and show what files of weights hold.",
    examples=["mrcnn weights show model_final.pkl", "mrcnn weights convert model_final.pkl mask_rcnn.safetensors"],
)


@command.command(
    "convert",
    cls=Verb,
    examples=[
        "mrcnn weights convert model_final.pkl mask_rcnn.safetensors",
        "mrcnn weights convert mine.pth mine.safetensors --set \"data.classes=['cat','dog']\"",
    ],
)
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST", type=click.Path(path_type=Path))
@click.option(
    "--recipe", metavar="RECIPE", show_default="what the tensors tell", help="The recipe that the weights are for."
)
@set_option("model.backbone.stride_in_1x1=false")
@json_option
def convert(source: str, destination: Path, recipe: str | None, assignments: tuple[str, ...], as_json: bool) -> None:
    """Convert a model of another system into a checkpoint with its recipe inside.

    SRC is a file of Detectron2, torchvision, Detectron or MMDetection; DST is a .safetensors file.
    """
    from mrcnn_cli.engine.weights import convert

    checkpoint = convert(source, destination, assignments, recipe)
    model, classes, left_out = checkpoint.config.model, checkpoint.classes, checkpoint.left_out
    if as_json:
        print_json({"source": source, "system": checkpoint.origin, "written": str(destination), "left_out": left_out})
        return
    say(f"source   {shown_path(checkpoint.path)}: {checkpoint.origin}, {model.name}, {model.backbone.name}")
    say(f"classes  {len(classes)}: {', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''}")
    for name, reason in left_out.items():
        say(f"not used {name}, which {reason}")
    say(f"written  {shown_path(destination)}, {destination.stat().st_size / 1e6:,.1f} MB")
    say(f"next     mrcnn predict images/ --weights {typed_path(destination)}")


@command.command("show", cls=Verb, examples=["mrcnn weights show model_final.pkl --tensors"])
@click.argument("file", metavar="FILE")
@click.option("--tensors", "all_tensors", is_flag=True, help="List every tensor: its names here and there, its shape.")
@json_option
def show(file: str, all_tensors: bool, as_json: bool) -> None:
    """Show what a file of weights is: its system, model, pixels, classes and sizes.

    FILE is a checkpoint, a run's folder, or a file of another system.
    """
    from mrcnn_cli.engine.weights import describe

    about = describe(file)
    if as_json:
        print_json(about)
        return
    table("", ["fact", "value"], list(about["facts"].items()))
    parts = [(part["part"], part["tensors"], part["parameters"], part["bytes"] / 1e6) for part in about["parts"]]
    table("Parts", ["part", "tensors", "parameters", "MB"], parts)
    if about["left_out"]:
        table("Not used", ["tensor", "reason"], list(about["left_out"].items()))
    if all_tensors:
        rows = [(t["name"], t["source"], " x ".join(map(str, t["shape"])), t["type"]) for t in about["tensors"]]
        table("Tensors", ["here", "in the file", "shape", "type"], rows)
