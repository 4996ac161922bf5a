"""Fuzz one kind of file: run_one.py KIND quick|full FOLDER.

It runs in a separate process because the cases run in forks, and torch's autograd cannot be used
in a fork of a process that has used it, as the test process may have.
"""

import sys
from pathlib import Path

from tests.fuzz.checkpoint_files import CheckpointFiles
from tests.fuzz.coco_documents import CocoDocuments
from tests.fuzz.coco_results import CocoResults
from tests.fuzz.harness import Kind, faults_of, run_kind
from tests.fuzz.image_files import ImageFiles
from tests.fuzz.report import make_report
from tests.fuzz.yaml_configs import YamlConfigs

KINDS: dict[str, type[Kind]] = {
    kind.name: kind
    for kind in (CocoDocuments, CocoResults, YamlConfigs, ImageFiles, CheckpointFiles)
}


def main() -> None:
    """Run the cases; print the report to stdout and the faults to stderr."""
    name, size, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    kind = KINDS[name]()
    count = kind.quick if size == "quick" else kind.full
    outcomes = run_kind(kind, count, folder)
    sys.stdout.write(f"{make_report(kind.name, outcomes)}\n")
    assert len({outcome.index for outcome in outcomes}) == count
    faults = [f"{number} x {first}\n" for first, number in faults_of(outcomes)]
    if faults:
        sys.exit(f"{folder}/faults contains the input of:\n{''.join(faults)}")


if __name__ == "__main__":
    main()
