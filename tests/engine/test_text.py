"""Escaping of untrusted text on consoles."""

import subprocess
import sys
from pathlib import Path

import pytest

from engine.text import one_line, printable

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain, été, 日本, \U0001f600", "plain, été, 日本, \U0001f600"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("\x9b2J\x7f\x85", "\\x9b2J\\x7f\\x85"),
        ("gpj.\u202eexe\u2066\u200f", "gpj.\\u202eexe\\u2066\\u200f"),
        ("\u2028\u2029", "\\u2028\\u2029"),
        ("\udcc3\ud800", "\\udcc3\\ud800"),
        ("a\0", "a\\x00"),
        ("", ""),
    ],
)
def test_control_characters_are_escaped(text: str, expected: str) -> None:
    assert printable(text) == expected


def test_kept_line_breaks_are_not_escaped() -> None:
    assert printable("a\nb\x1b", keep="\n") == "a\nb\\x1b"


def test_one_line_has_single_spaces() -> None:
    assert one_line(ValueError(" no\n\n  memory\r\n")) == "no memory"


NAME = "caf\\u00e9 \\u732b\\x1b[2J\\u202e\\udcff"
PROGRAM = f"""
from engine.cli import run_command
from engine.errors import UserError
from engine.log import RunLog, make_console
from rich.table import Table

def main():
    name = "{NAME}"
    table = Table("class", name, title=name)
    table.add_row(name, "1")
    make_console().print(table, soft_wrap=False)
    RunLog(None, is_main=True).note(f"read {{name}}\\nforged line")
    print(name.replace("\\x1b", ""))
    raise UserError(f"{{name}}: expected\\nless")

run_command(main)
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "gbk", "utf-8"])
def test_any_console_encoding_prints_any_name(encoding: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={"PYTHONIOENCODING": encoding, "PYTHONPATH": str(REPOSITORY), "LC_ALL": "C"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    out, err = done.stdout.decode(encoding), done.stderr.decode(encoding)
    assert "\x1b" not in out + err
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1
    assert r"\x1b[2J" in err
    assert r"read caf" in out
    assert r"\nforged line" in out
    assert ("café" in out) == (encoding != "ascii")
    assert ("┃" in out) == (encoding == "utf-8")


PRINTING = """
from engine.cli import run_command

def main():
    for number in range(100_000):
        print("line", number)

run_command(main)
"""


def test_stdout_on_a_full_disk_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", PRINTING],
            env={"PYTHONPATH": str(REPOSITORY)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == "error: No space left on device\n"


def test_closed_pipe_is_not_a_traceback() -> None:
    done = subprocess.run(
        ["bash", "-c", '"$0" -c "$1" | head -1', sys.executable, PRINTING],
        env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("line 0\n", "")
