"""The ways in which a run or a sample ends early, and the exit code that each gives a command."""


class UserError(ValueError):
    """What the user can put right: a file, a key, a value. One clear line; exit code 2."""

    exit_code = 2


class EvaluationError(UserError):
    """An evaluation could not be finished; a training goes on and tries again the next time."""


class ReadingError(UserError):
    """Images cannot be read on: memory, /dev/shm, open files, or a reader killed or stopped.

    The machine's doing, not the data's: what was trained so far is good and can be resumed.
    """


class PeerError(UserError):
    """Another process of a run ended, or did not answer in time; it has its own error."""


class SkippedSampleError(Exception):
    """A data set's word that an image is bad and that the policy is to skip and count it."""


class StoppedError(RuntimeError):
    """Ends a command in one line, with the exit code of the class."""

    exit_code = 1


class DivergedError(StoppedError):
    """Training met too many non-finite losses or gradients in a row; exit code 3."""

    exit_code = 3


class InterruptedRunError(StoppedError):
    """Ctrl-C or SIGTERM arrived; a checkpoint to resume from has been written; exit code 130."""

    exit_code = 130
