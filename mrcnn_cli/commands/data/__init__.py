"""mrcnn data: annotations of any format, made ready."""

from mrcnn_cli.commands.console import Verbs

VERBS = {
    "prepare": "mrcnn_cli.commands.data.prepare",
    "convert": "mrcnn_cli.commands.data.convert",
}

command = Verbs(
    "data",
    modules=VERBS,
    help="Prepare and convert annotated images.",
    examples=["mrcnn data prepare photos -o data", "mrcnn train --data data"],
)
