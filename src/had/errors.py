"""The kinds of error a command can end with."""


class UserError(Exception):
    """The user's input or options are wrong: exit code 2, nothing was written.

    The message is one sentence that names the file, the record and what to do.
    """


class RunFault(Exception):
    """A fault while working (full disk, NaN loss, killed worker): exit code 1.

    The message says what is saved and how to go on.
    """


class Interrupted(RunFault):
    """Ctrl-C or SIGTERM: exit code 130 or 143.

    The message says what is saved and how to go on.
    """
