"""A run that is interrupted at any point and resumed equals an uninterrupted one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.fault_injection import Fault
from tests.faults.matrix import GROUPS, Pool, Row, table
from tests.faults.trials import ReferenceRun, Trial


@pytest.mark.parametrize(
    "name",
    ["apart:1:kill@57", "late:2:term-group+3@40", "workers:1:kill@5/train", "late:2:int@7:rank1"],
)
def test_names_of_trials_are_parsed(name: str) -> None:
    assert str(Trial.parse(name)) == name


def important_faults(reference: ReferenceRun) -> list[Fault]:
    """Return the most important faults: before a rename, in the middle of a write, in a step."""
    points = list(enumerate(reference.points[0], start=1))

    def first(name: str, part: str, after: int = 0) -> int:
        return next(n for n, p in points if p.name == name and part in p.path and p.step >= after)

    middle, last = reference.last_step // 2, reference.last_step
    best, model = "best.pt.partial", "model.safetensors.partial"
    return [
        Fault("kill", first("replace", best)),
        Fault("kill", first("replace", "step_")),
        Fault("kill", first("unlink", "step_")),
        Fault("kill", first("replace", "metrics.json.partial", middle)),
        Fault("kill", first("replace", model)),
        Fault("torn", first("write", "metrics.jsonl", middle)),
        Fault("full", first("write", "metrics.jsonl", middle)),
        Fault("full", first("write", best)),
        Fault("filled", first("write", model)),
        Fault("term", first("step", "", middle), group=True),
        Fault("int", first("predict", "", middle)),
        Fault("term", first("write", model, last)),
    ]


@pytest.mark.extended
def test_important_faults(tmp_path: Path) -> None:
    pool = Pool(tmp_path, size=1, detector=False)
    try:
        reference = pool.runner.reference("apart", 1)
        wrong = pool.run([Trial("apart", 1, fault) for fault in important_faults(reference)])
    finally:
        pool.close()
    assert reference.defects == ()
    assert wrong == {}


@pytest.fixture(scope="module")
def pool(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Pool, list[Row]]]:
    """Yield servers, and a list of rows that are printed at the end."""
    servers, rows = Pool(tmp_path_factory.mktemp("faults")), list[Row]()
    yield servers, rows
    servers.close()
    capture = request.config.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        request.config.get_terminal_writer().write(f"\n{table(rows)}\n")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", GROUPS)
def test_matrix(pool: tuple[Pool, list[Row]], name: str) -> None:
    servers, rows = pool
    rows.append(servers.run_group(name))
    assert rows[-1].defects == ()
    assert rows[-1].wrong == {}
