"""The verbs of `mrcnn`: one file each, imported when it is asked for."""

import click

from mrcnn_cli import __version__
from mrcnn_cli.commands.console import Verbs

COMMANDS = {
    "train": "mrcnn_cli.commands.train",
    "evaluate": "mrcnn_cli.commands.evaluate",
    "predict": "mrcnn_cli.commands.predict",
    "proposals": "mrcnn_cli.commands.proposals",
    "data": "mrcnn_cli.commands.data",
    "weights": "mrcnn_cli.commands.weights",
    "config": "mrcnn_cli.commands.config",
    "doctor": "mrcnn_cli.commands.doctor",
    "runs": "mrcnn_cli.commands.runs",
    "replay": "mrcnn_cli.commands.replay",
    "gradcheck": "mrcnn_cli.commands.gradcheck",
    "bench": "mrcnn_cli.commands.bench",
}

cli = Verbs(
    "mrcnn",
    modules=COMMANDS,
    help="Train, evaluate and check R-CNN models that can be trusted bit by bit.",
    examples=["mrcnn train", "mrcnn predict images/"],
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 100},
)
click.version_option(__version__, prog_name="mrcnn", message="%(prog)s %(version)s")(cli)
