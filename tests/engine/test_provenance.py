"""What a run folder says of where the run was started and resumed."""

from pathlib import Path

import pytest
import torch

from engine.provenance import STARTS_FILE, current_commit, note_start, read_starts

CPU = torch.device("cpu")


def test_starts_are_added_and_later_ones_replaced(tmp_path: Path) -> None:
    for step in (0, 40, 20):  # resumed at 40, then again at 20
        note_start(tmp_path, step=step, device=CPU)
    starts = read_starts(tmp_path)
    assert [each["step"] for each in starts] == [0, 20]
    assert starts[0]["commit"] == current_commit()
    assert torch.__version__ in starts[0]["machine"]


@pytest.mark.parametrize("text", ["", "{", "{}", "[1]", '[{"step": 1}]'])
def test_a_damaged_file_is_replaced(tmp_path: Path, text: str) -> None:
    (tmp_path / STARTS_FILE).write_text(text)
    assert read_starts(tmp_path) == []
    note_start(tmp_path, step=0, device=CPU)
    assert len(read_starts(tmp_path)) == 1


def test_no_file_no_starts(tmp_path: Path) -> None:
    assert read_starts(tmp_path) == []
