"""Exceptions of the project, and the exit code that each gives a command."""


class UserError(ValueError):
    """A mistake that the user can fix: a file, a key, a value. One clear line; exit code 2."""

    exit_code = 2


class DamagedFileError(UserError):
    """A file can be read, but its content is not what was written."""


class EvaluationError(UserError):
    """An evaluation failed. Training continues and evaluates again at the next interval."""


class ReadingError(UserError):
    """Images cannot be read: no memory, /dev/shm full, too many open files, or a worker killed.

    The cause is the machine, not the data: the state trained so far is valid and can be resumed.
    """


class PeerError(UserError):
    """Another process of the run ended or did not answer in time; its own error says why."""


class SkippedSampleError(Exception):
    """Raised by a data set if an image is bad and the policy is to skip and count it."""


class StoppedError(RuntimeError):
    """Ends a command in one line, with the exit code of the class."""

    exit_code = 1


class DivergedError(StoppedError):
    """Too many steps in a row had non-finite losses or gradients; exit code 3."""

    exit_code = 3


class DisagreementError(StoppedError):
    """Two sides of a check differ, such as an exported file and its model; exit code 4."""

    exit_code = 4


class InterruptedRunError(StoppedError):
    """Ctrl-C or SIGTERM stopped the run after it wrote a checkpoint; exit code 130."""

    exit_code = 130
