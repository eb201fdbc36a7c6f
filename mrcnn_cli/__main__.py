"""The command `mrcnn`."""

import sys


def main(arguments: list[str] | None = None) -> int:
    """The exit status of a command line (None: that of this process)."""
    try:
        from mrcnn_cli.commands import cli
        from mrcnn_cli.commands.console import run
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    return run(cli, sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
