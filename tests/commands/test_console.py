"""The manners that all verbs share."""

import errno
import os
import re
import signal
import subprocess
import sys
import time

import click
import pytest

from mrcnn_cli.commands import COMMANDS, cli
from mrcnn_cli.commands.console import GracefulStop, duration, one_line, run
from mrcnn_cli.errors import UserError


def all_commands(command=cli, path=()):
    """Every command with the words that call it."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from all_commands(command.get_command(context, name), (*path, name))


EVERY = [pytest.param(path, command, id=" ".join(("mrcnn", *path))) for path, command in all_commands()]
VERBS = [case for case in EVERY if not isinstance(case.values[1], click.Group)]


def failing(error):
    @click.command("fails")
    def command():
        raise error

    return command


def test_the_verbs_are_those_of_the_table():
    assert cli.list_commands(click.Context(cli)) == list(COMMANDS)
    assert {case.values[0] for case in VERBS} >= {("train",), ("config", "list"), ("bench", "kernels")}


@pytest.mark.parametrize(("path", "command"), EVERY)
def test_help_is_a_sentence_that_starts_with_a_verb_and_ends_with_an_example(mrcnn, path, command):
    outcome = mrcnn(*path, "--help")
    assert outcome.status == 0
    assert outcome.err == ""
    sentence = command.help.partition("\n\n")[0]
    assert re.fullmatch(r"[A-Z][a-z]+,? .*\.", sentence, re.DOTALL), sentence
    examples = re.split(r"\nExamples?:\n", outcome.out)[1]
    assert re.search(rf"^  {' '.join(('mrcnn', *path))}\b", examples, re.MULTILINE)
    assert all(line.startswith("  mrcnn ") for line in examples.strip("\n").splitlines())


@pytest.mark.parametrize(("path", "command"), VERBS)
def test_help_shows_the_default_of_every_option(mrcnn, path, command):
    text = one_line(mrcnn(*path, "--help").out).partition(" Options: ")[2]
    for option in command.params:
        if isinstance(option, click.Option) and not (option.is_flag or option.hidden):
            described = re.search(rf"{max(option.opts, key=len)} (.*?)(?= --\w| -\w,|$)", text)[1]
            assert "[default: " in described or (option.required and "[required]" in described), option.opts


@pytest.mark.parametrize(("path", "command"), VERBS)
def test_every_example_is_understood(path, command):
    for example in command.examples:
        words = [word.strip("'") for word in example.partition(" > ")[0].split()]
        assert words[0] == "mrcnn"
        assert tuple(words[1 : len(path) + 1]) == path
        command.make_context(command.name, words[len(path) + 1 :])  # raises click's errors


def test_mrcnn_alone_shows_its_help(mrcnn):
    outcome = mrcnn()
    assert outcome.status == 0
    assert all(verb in outcome.out for verb in COMMANDS)


@pytest.mark.parametrize("path", [(), *(case.values[0] for case in VERBS)], ids=" ".join)
def test_help_loads_neither_torch_nor_numpy_nor_pydantic(path):
    script = (
        "import sys; from mrcnn_cli.__main__ import main; "
        f"status = main([*{path!r}, '--help']); "
        "heavy = {'torch', 'numpy', 'PIL', 'pydantic', 'pycocotools'} & set(sys.modules); "
        "print(sorted(heavy), status, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == "[] 0\n"


def test_version_is_that_of_the_package(mrcnn):
    from mrcnn_cli import __version__

    assert mrcnn("--version").out == f"mrcnn {__version__}\n"


def test_an_unknown_verb_names_the_closest(mrcnn):
    outcome = mrcnn("pedict")
    assert outcome.status == 2
    assert outcome.error == "no such command 'pedict'; did you mean 'predict'?"


def test_an_unknown_verb_that_is_like_none_names_all(mrcnn):
    assert mrcnn("xyz").error == f"no such command 'xyz'; known commands: {', '.join(COMMANDS)}"


def test_an_unknown_option_is_a_wrong_usage(mrcnn):
    outcome = mrcnn("train", "--seed", "1")
    assert outcome.status == 2
    assert "Usage: mrcnn train" in outcome.err
    assert "--seed" in outcome.error


def test_a_mistake_is_one_line_and_status_1(capsys):
    assert run(failing(UserError("a.json: broken\n  in line 3;\nmend it")), []) == 1
    captured = capsys.readouterr()
    assert captured.err == "error: a.json: broken in line 3; mend it\n"
    assert captured.out == ""


def test_a_long_mistake_is_not_wrapped(capsys):
    message = "word " * 100 + "end"
    run(failing(UserError(message)), [])
    assert capsys.readouterr().err == f"error: {message}\n"


def test_brackets_in_a_message_are_not_markup(capsys):
    run(failing(UserError("[red]annotations[3]: pip install 'mrcnn-cli[pretrained]'")), [])
    assert capsys.readouterr().err == "error: [red]annotations[3]: pip install 'mrcnn-cli[pretrained]'\n"


def test_a_bug_shows_its_traceback(capsys):
    assert run(failing(ZeroDivisionError("by zero")), []) == 1
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert "ZeroDivisionError: by zero" in err
    assert err.endswith("error: this is a bug of mrcnn, not yours; please report it with the lines above\n")


def test_a_full_disk_is_no_bug(capsys):
    assert run(failing(OSError(errno.ENOSPC, "No space left on device", "runs/a/last.safetensors")), []) == 1
    assert capsys.readouterr().err == "error: runs/a/last.safetensors: No space left on device\n"


def test_kernels_that_are_not_built_are_no_bug(capsys):
    assert run(failing(ModuleNotFoundError("No module named 'mrcnn_cli._C'", name="mrcnn_cli._C")), []) == 1
    assert capsys.readouterr().err.startswith("error: the kernels are not built; run: pip install")


@pytest.mark.parametrize("arguments", [("--debug", "config", "show", "nope"), ("config", "show", "nope", "--debug")])
def test_debug_shows_the_traceback_of_a_mistake_too(mrcnn, arguments):
    outcome = mrcnn(*arguments)
    assert outcome.status == 1
    assert "Traceback" in outcome.err
    assert outcome.err.splitlines()[-1].startswith("error: nope: no such recipe or file")


def test_an_interrupt_exits_with_130(capsys):
    assert run(failing(KeyboardInterrupt()), []) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_an_interrupt_that_a_library_turned_into_its_own_error_is_still_one(capsys):
    @click.command("imports")
    def command():
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:
            raise ImportError("half a library") from None

    assert run(command, []) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_the_handler_of_interrupts_is_put_back():
    before = signal.getsignal(signal.SIGINT)
    run(failing(UserError("no")), [])
    assert signal.getsignal(signal.SIGINT) is before


def test_a_graceful_stop_asks_first_and_interrupts_then(capfd):
    stop = GracefulStop("once more to stop at once")
    with stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err == "\nonce more to stop at once\n"


def test_colours_are_only_for_a_terminal_and_without_no_color():
    def coloured(**changes):
        environment = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")}
        command = [sys.executable, "-m", "mrcnn_cli", "nope"]
        environment |= {"TERM": "xterm", **changes}
        return "\x1b[31m" in subprocess.run(command, env=environment, capture_output=True, text=True).stderr

    assert not coloured()
    assert coloured(FORCE_COLOR="1")
    assert not coloured(FORCE_COLOR="1", NO_COLOR="1")


def test_a_reader_that_has_seen_enough_is_no_error():
    command = f"{sys.executable} -m mrcnn_cli config list | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.7, "1:00"), (725, "12:05"), (11050, "3:04:10")])
def test_durations_are_read_like_a_clock(seconds, text):
    assert duration(seconds) == text
