"""mrcnn data: annotations of any format, made ready, checked and shown."""

from mrcnn_cli.commands.console import Verbs

VERBS = {
    "prepare": "mrcnn_cli.commands.data.prepare",
    "convert": "mrcnn_cli.commands.data.convert",
    "check": "mrcnn_cli.commands.data.check",
    "stats": "mrcnn_cli.commands.data.stats",
    "view": "mrcnn_cli.commands.data.view",
    "tile": "mrcnn_cli.commands.data.tile",
    "synth": "mrcnn_cli.commands.data.synth",
}

command = Verbs(
    "data",
    modules=VERBS,
    help="Prepare, convert, check, measure, show, cut and make up annotated images.",
    examples=["mrcnn data prepare photos -o data", "mrcnn data check data", "mrcnn train --data data"],
)
