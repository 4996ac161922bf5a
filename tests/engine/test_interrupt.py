"""Graceful stop on Ctrl-C and SIGTERM."""

import signal
import sys
import threading
import time
from collections.abc import Iterator

import pytest

import engine.interrupt
from engine.interrupt import stop_requests

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture
def reached() -> Iterator[list[int]]:
    """Collect the signals that reach the previously installed handlers."""
    found: list[int] = []
    before = {number: signal.signal(number, lambda n, _: found.append(n)) for number in SIGNALS}
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_sets_the_flag_and_prints_a_line(
    number: signal.Signals,
    reached: list[int],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        sys, "stderr", None
    )  # the handler must not use sys.stderr, which it may interrupt
    with stop_requests() as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested
        assert capfd.readouterr().err.startswith(f"{number.name}: stopping after this step")
    assert not reached
    signal.raise_signal(number)
    assert reached == [number]


def test_duplicate_signals_are_one_request(
    reached: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    with stop_requests() as stop:
        for number in [*SIGNALS, *SIGNALS]:
            signal.raise_signal(number)
        assert stop.requested
    assert not reached
    assert capfd.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_later_second_signal_ends_the_process(
    first: signal.Signals,
    second: signal.Signals,
    reached: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine.interrupt, "_DUPLICATE_S", 0.01)
    with stop_requests():
        signal.raise_signal(first)
        time.sleep(0.02)
        signal.raise_signal(second)
        assert reached == [second]


def test_training_works_in_other_threads() -> None:
    found = []

    def ask() -> None:
        with stop_requests() as stop:
            found.append(stop.requested)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert found == [False]
