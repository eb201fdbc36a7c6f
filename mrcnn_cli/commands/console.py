"""How the command line looks and fails: verbs, errors, tables and Ctrl-C. Nothing here imports torch."""

import difflib
import errno
import importlib
import json
import os
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mrcnn_cli.errors import UserError

# Results go to stdout, everything else to stderr. Both find their stream when they print, so it may be replaced.
results = Console(highlight=False, soft_wrap=True)
chatter = Console(highlight=False, soft_wrap=True, stderr=True)

INTERRUPTED = 130
# What the machine refuses is no bug of ours: disk full, quota, no permission, read-only.
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


class Verb(click.Command):
    """A verb: its help ends with examples, and --debug is known after it too.

    Args:
        examples: command lines, as a person types them.
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), **settings: Any):
        super().__init__(*args, **settings)
        self.examples = examples
        self.params.append(debug_option())

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(formatter, self.examples)


class Verbs(click.Group):
    """Verbs by name, each imported when it is asked for.

    Args:
        modules: verb -> the module that holds a `command`.
        examples: command lines, as a person types them.
    """

    def __init__(
        self, *args: Any, modules: Mapping[str, str] | None = None, examples: Sequence[str] = (), **settings: Any
    ):
        super().__init__(*args, **{"invoke_without_command": True, "callback": show_help, **settings})
        self.modules = modules or {}
        self.examples = examples
        self.params.append(debug_option())

    def list_commands(self, context: click.Context) -> list[str]:
        return [*self.modules, *self.commands]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name in self.modules:
            return importlib.import_module(self.modules[name]).command
        return self.commands.get(name)

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = arguments[0]
        if not name.startswith("-") and self.get_command(context, name) is None:
            known = self.list_commands(context)
            raise click.UsageError(f"no such command '{name}'; {closest(name, known, 'commands')}", context)
        return super().resolve_command(context, arguments)

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(formatter, self.examples)


device_option = click.option(
    "--device", default="auto", metavar="DEVICE", help="auto (a GPU if there is one), cpu, cuda or cuda:N."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout and nothing else there.")


def set_option(example: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """--set, explained by an example that fits the verb."""
    return click.option(
        "--set",
        "assignments",
        multiple=True,
        metavar="KEY=VALUE",
        show_default="nothing",
        help=f"Replace a value of the recipe, for example {example}; may be repeated.",
    )


@click.pass_context
def show_help(context: click.Context) -> None:
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def debug_option() -> click.Option:
    return click.Option(
        ["--debug"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_remember_debug,
        help="Show the traceback of every error, and the warnings of libraries.",
    )


def _remember_debug(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.find_root().meta["debug"] = True


def write_examples(formatter: click.HelpFormatter, examples: Sequence[str]) -> None:
    if examples:
        with formatter.section("Examples" if len(examples) > 1 else "Example"):
            for example in examples:
                formatter.write(f"{'':{formatter.current_indent}}{example}\n")


def run(command: click.Command, arguments: Sequence[str]) -> int:
    """The exit status of a command line: 0, or 1 for a mistake or a bug, 2 for a wrong usage, 130 for Ctrl-C.

    A verb's own status is what its function returns; None stands for 0.
    """
    interrupt = _Interrupt()
    previous = signal.signal(signal.SIGINT, interrupt)
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:  # a file name that the terminal's encoding cannot show is no reason to fail
        reconfigure(errors="backslashreplace")
    meta: dict[str, Any] = {}
    try:
        with warnings.catch_warnings():
            if "--debug" not in arguments and not sys.warnoptions:
                warnings.simplefilter("ignore")
            with command.make_context("mrcnn", list(arguments)) as context:
                meta = context.meta
                status = command.invoke(context)
            sys.stdout.flush()
            return status or 0
    except click.exceptions.Exit as finished:
        return finished.exit_code
    except SystemExit as finished:
        return finished.code if isinstance(finished.code, int) else 1
    except BrokenPipeError:
        # Whoever read our output has seen enough. What is left in the buffer must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except BaseException as error:
        if interrupt.happened or isinstance(error, KeyboardInterrupt):
            # Libraries turn a Ctrl-C during their import into errors of their own.
            say_error("interrupted")
            return INTERRUPTED
        return _fail(error, debug=bool(meta.get("debug")))
    finally:
        signal.signal(signal.SIGINT, previous)


def _fail(error: BaseException, debug: bool) -> int:
    """Says what went wrong; a traceback only for a bug of ours or on demand. The exit status."""
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        if context is not None:
            click.echo(f"{context.get_usage()}\nTry '{context.command_path} --help'.", err=True)
        say_error(error.format_message())
        return error.exit_code
    if isinstance(error, OSError) and error.errno in REFUSALS:
        message = f"{error.filename or 'a file'}: {error.strerror}"
    elif isinstance(error, UserError):
        message = str(error)
    elif isinstance(error, ModuleNotFoundError) and error.name == "mrcnn_cli._C":
        message = "the kernels are not built; run: pip install --no-build-isolation -e . in the checkout"
    else:
        debug, message = True, "this is a bug of mrcnn, not yours; please report it with the lines above"
    if debug:
        traceback.print_exception(error)
    say_error(message)
    return 1


class _Interrupt:
    """The handler of Ctrl-C outside of training: KeyboardInterrupt, remembered."""

    def __init__(self) -> None:
        self.happened = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.happened = True
        raise KeyboardInterrupt


class GracefulStop:
    """Ctrl-C as a question: while entered, the first one makes this true when called, the second one interrupts.

    Loader processes inherit the handler, so a first Ctrl-C, which a terminal sends to all of them, leaves them alive.

    Args:
        message: what a first Ctrl-C is answered with.
        also: further signals that ask the same, without an answer.
    """

    def __init__(self, message: str, also: Sequence[signal.Signals] = ()):
        self.asked = False
        self.message, self.also = message, also

    def __call__(self) -> bool:
        return self.asked

    def __enter__(self) -> "GracefulStop":
        self.process = os.getpid()
        self.previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, *self.also)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:
            return
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        # A handler may interrupt a print, and Python's streams cannot be entered twice: write past them.
        if self.message and number == signal.SIGINT:
            os.write(2, f"\n{self.message}\n".encode())


def say(message: str) -> None:
    """A line of chatter."""
    chatter.print(Text(message))


def say_warning(message: str) -> None:
    chatter.print(Text(f"warning: {one_line(message)}", style="yellow"))


def say_error(message: str) -> None:
    chatter.print(Text(f"error: {one_line(message)}", style="red"))


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table of results; columns of numbers are aligned to the right.

    On a terminal it fits the screen; elsewhere each row is one line, for grep and awk.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    right = [bool(cells) and all(isinstance(row[place], Number) for row in cells) for place in range(len(columns))]
    if not results.is_terminal:
        _plain_table(title, columns, [[cell.plain for cell in row] for row in cells], right)
        return
    shown = Table(
        title=Text(title, style="bold") if title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        header_style="bold",
    )
    for column, numbers in zip(columns, right, strict=True):
        shown.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in cells:
        shown.add_row(*row)
    results.print(shown, soft_wrap=False)


def _plain_table(title: str, columns: Sequence[str], rows: list[list[str]], right: Sequence[bool]) -> None:
    lines = [list(columns), *rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    if title:
        click.echo(title)
    for line in lines:
        padded = [
            cell.rjust(width) if numbers else cell.ljust(width)
            for cell, width, numbers in zip(line, widths, right, strict=True)
        ]
        click.echo("  ".join(padded).rstrip())


class Number(Text):
    """A cell that is aligned as a number."""


def _cell(value: Any) -> Text:
    if isinstance(value, Text):
        return value
    if value is None:
        return Number("-")
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, float):
        return Number(f"{value:.3f}")
    return Number(f"{value:,}") if isinstance(value, int) else Text(str(value))


def metrics_tables(metrics: dict[str, Any]) -> None:
    """COCO's metrics of `evaluation.coco.evaluate`: of boxes, masks and keypoints; per class if there are several.

    Or the average recall of `evaluation.proposals`.
    """
    if "proposal_ar1000" in metrics:
        recall_table(metrics)
        return
    kinds = [kind for kind in ("box", "mask", "keypoint") if f"{kind}_ap" in metrics]
    # Which recall there is depends on how many detections count: ar100, of keypoints ar20, unless the recipe says
    # otherwise.
    recalls = [
        [key.removeprefix(f"{kind}_") for key in metrics if key.startswith(f"{kind}_ar") and key[-1].isdigit()][-1]
        for kind in kinds
    ]
    columns = {
        "AP": "ap",
        "AP50": "ap50",
        "AP75": "ap75",
        "AP small": "ap_small",
        "AP medium": "ap_medium",
        "AP large": "ap_large",
        **{recall.upper(): recall for recall in recalls},
    }
    rows = [[kind, *(metrics.get(f"{kind}_{key}") for key in columns.values())] for kind in kinds]
    counts = f"{metrics['images']:,} images, {metrics['objects']:,} objects, {metrics['detections']:,} detections"
    table(f"COCO metrics: {counts}", ["", *columns], rows)
    per_class = {f"{kind} AP": f"{kind}_ap" for kind in kinds}
    if "pq" in metrics:
        _panoptic_table(metrics)
        per_class |= {"PQ": "pq", "SQ": "sq", "RQ": "rq"}
    if len(metrics["classes"]) > 1:
        table(
            "Per class",
            ["class", *per_class],
            [[name, *(values.get(key) for key in per_class.values())] for name, values in metrics["classes"].items()],
        )
    if "keypoint_sigmas" in metrics:
        low, high = min(metrics["keypoint_sigmas"]), max(metrics["keypoint_sigmas"])
        sigmas = f"a sigma of {low:g} for each keypoint" if low == high else f"sigmas from {low:g} to {high:g}"
        say(f"keypoints are compared by COCO's object keypoint similarity with {sigmas} (evaluate.keypoint_sigmas)")


def _panoptic_table(metrics: dict[str, Any]) -> None:
    groups = {"all": "", "things": "_things", "stuff": "_stuff"}
    columns = {"PQ": "pq", "SQ": "sq", "RQ": "rq", "classes": "pq_categories"}
    rows = [[name, *(metrics[f"{key}{end}"] for key in columns.values())] for name, end in groups.items()]
    table("Panoptic quality", ["", *columns], rows)


def recall_table(metrics: dict[str, Any]) -> None:
    """The metrics of `evaluation.proposals`."""
    columns = {"AR": "", "AR small": "_small", "AR medium": "_medium", "AR large": "_large"}
    counts = f"{metrics['images']:,} images, {metrics['objects']:,} objects, {metrics['proposals']:,} proposals"
    rows = [[n, *(metrics[f"proposal_ar{n}{area}"] for area in columns.values())] for n in (100, 1000)]
    table(f"Average recall: {counts}", ["proposals per image", *columns], rows)


def duration(seconds: float) -> str:
    """0:42, 12:05 or 3:04:10."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def shown_path(path: Path) -> str:
    """A path as a person would name it here: relative below the current folder."""
    path = Path(path)
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return str(path)


def typed_path(path: Path) -> str:
    """The same, quoted for the shell."""
    return shlex.quote(shown_path(path))


def closest(word: str, known: Sequence[str], what: str) -> str:
    """What a person may have meant, in words."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"known {what}: {', '.join(known)}"


def one_line(text: str) -> str:
    return " ".join(text.split())
