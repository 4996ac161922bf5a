"""The error of a benchmark whose two sides differ."""

from engine.errors import StoppedError


class DisagreementError(StoppedError):
    """Two sides gave different results, so their times mean nothing; exit code 4."""

    exit_code = 4
