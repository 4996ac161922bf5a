from pathlib import Path

import pytest

from engine.cli import SPIN_COUNT
from tools.lab.benchmarks.busy import NUM_BUSY, busy
from tools.lab.benchmarks.settings import Settings


@pytest.mark.slow
def test_training_is_measured_alone_and_next_to_busy_processes(tmp_path: Path) -> None:
    rows = busy(Settings(folder=tmp_path, log=print, rounds=1, small=True))
    chosen, others = f"GOMP_SPINCOUNT={SPIN_COUNT}", f"beside {NUM_BUSY} busy processes"
    assert [(chosen in row.work, others in row.work) for row in rows] == [
        (False, False),
        (False, True),
        (True, False),
        (True, True),
    ]
    assert rows[0].value == 1  # compared with itself
    assert all(row.value > 0 and "images/s" in row.detail for row in rows)
    assert [row.promised for row in rows] == [None, None, 0.98, 100 / 3]
