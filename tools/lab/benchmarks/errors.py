"""Error raised if the two sides of a benchmark give different results."""

from engine.errors import StoppedError


class DisagreementError(StoppedError):
    """The two sides gave different results, so that their times mean nothing; exit code 4."""

    exit_code = 4
