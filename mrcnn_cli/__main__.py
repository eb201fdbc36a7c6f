"""The command `mrcnn`."""

import os
import sys

# Threads that wait for each other sleep instead of spinning: the processes that prepare batches, and whatever else runs
# on the machine, then get the core. OpenMP reads this once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


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
