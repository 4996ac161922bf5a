from functools import partial

import pytest
import torch

from tools.lab.benchmarks.errors import DisagreementError
from tools.lab.benchmarks.measure import (
    LONG_ROUND_S,
    Comparison,
    Row,
    check_close,
    compare,
    log_round,
    markdown_of,
    report_of,
)


def test_ratio_is_the_median_of_the_ratios_of_the_rounds() -> None:
    # the second round is slow on both sides, which leaves its ratio as it was
    assert Comparison(ours=(1.0, 10.0, 2.0), peer=(3.0, 31.0, 4.0)).ratio == 3.0


def test_both_sides_are_called_in_turn_after_a_warm_up() -> None:
    calls: list[str] = []
    ours, peer = partial(calls.append, "o"), partial(calls.append, "p")
    found = compare(ours, peer, rounds=2)
    assert "".join(calls) == "op" * 3
    assert len(found.ours) == len(found.peer) == 2
    calls.clear()
    compare(ours, peer, rounds=1, freed_memory="kept")
    assert "".join(calls) == "op" * 2
    calls.clear()
    compare(ours, peer, rounds=1, freed_memory="kept by ours")
    assert "".join(calls) == "oopp" * 2


def test_remaining_time_is_logged_after_a_long_round() -> None:
    lines: list[str] = []
    log_round(2, 5, LONG_ROUND_S - 1, lines.append)
    log_round(2, 5, 40.0, lines.append)
    assert lines == ["round 2 of 5 done, about 0:02:00 left"]


@pytest.mark.parametrize(
    ("row", "holds"),
    [
        (Row("faster", 2.0, "x", 1.5), True),
        (Row("slower", 1.2, "x", 1.5), False),
        (Row("small", 100, "MB", 250, smaller_is_better=True), True),
        (Row("large", 300, "MB", 250, smaller_is_better=True), False),
        (Row("no bound", 1.0), None),
    ],
    ids=lambda value: value.work if isinstance(value, Row) else "",
)
def test_row_says_whether_its_bound_holds(row: Row, holds: bool | None) -> None:
    assert row.holds is holds
    line = markdown_of([row]).splitlines()[-1]
    assert ("MISSED" in line) == (holds is False)
    assert ("at most" in line) == row.smaller_is_better


def test_error_names_results_that_differ() -> None:
    ours, peer = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.25])
    check_close("scores", ours, peer, rtol=0.2, atol=0)
    with pytest.raises(DisagreementError, match=r"^scores: .* 0\.01 .* got a difference of 0\.25$"):
        check_close("scores", ours, peer, rtol=0, atol=0.01)
    with pytest.raises(DisagreementError, match="shape"):
        check_close("scores", ours[:1], peer, rtol=1, atol=1)
    with pytest.raises(DisagreementError):
        check_close("scores", ours * torch.nan, peer, rtol=1, atol=1)


def test_report_has_tables_command_and_machine() -> None:
    rows = [Row("loading", 1.395, "x", 1.4, 2), Row("memory", 1234.5, "MB")]
    text = report_of({"x": rows}, command="tools/benchmark.py x", device=torch.device("cpu"))
    assert "## x" in text
    assert "| loading | 1.395x | 1.4x | 2x | MISSED |  |" in text
    assert "| memory | 1234 MB |" in text
    assert "- Command: `python tools/benchmark.py x`" in text
    capability = torch.backends.cpu.get_cpu_capability()
    assert f"CPU with {capability}" in text
    assert f", {torch.get_num_threads()} threads, torch " in text
