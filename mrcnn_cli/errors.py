"""The one exception that speaks to the person at the keyboard."""


class UserError(Exception):
    """A mistake in what a person gave us: one line that says what, where and what to do next.

    The command line prints it in red on stderr and exits with 1, without a traceback.
    """
