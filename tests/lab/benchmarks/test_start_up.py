import sys
from pathlib import Path

import pytest

from tools.lab.benchmarks.settings import Settings
from tools.lab.benchmarks.start_up import seconds_until_line, start_up


@pytest.mark.slow
def test_start_up_of_commands_is_timed(tmp_path: Path) -> None:
    lines: list[str] = []
    rows = start_up(Settings(folder=tmp_path, log=lines.append, rounds=1, small=True))
    assert [(row.unit, row.promised, row.aim) for row in rows] == [("s", 6, 4), ("s", 4, 3)]
    assert all(row.smaller_is_better and row.value > 0.5 for row in rows)
    assert not (tmp_path / "round_0" / "model.safetensors").exists()  # stopped at the first step
    assert (tmp_path / "predictions" / "detections.json").exists()


PRINT_AND_SLEEP = """
import time
print("hello", flush=True)
time.sleep({pause})
"""


def program(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_command_is_terminated_at_the_line(tmp_path: Path) -> None:
    assert (
        seconds_until_line("hel", program(PRINT_AND_SLEEP.format(pause=600)), folder=tmp_path) < 60
    )


def test_command_is_timed_to_its_end(tmp_path: Path) -> None:
    assert seconds_until_line("", program(PRINT_AND_SLEEP.format(pause=0.2)), folder=tmp_path) > 0.2


@pytest.mark.parametrize(
    ("start", "text", "message"),
    [("bye", "print('hello')", "exit code 0: hello"), ("", "raise KeyError('k')", "exit code 1")],
    ids=["no such line", "failed"],
)
def test_failure_of_the_command_is_an_error(
    tmp_path: Path, start: str, text: str, message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        seconds_until_line(start, program(text), folder=tmp_path)
