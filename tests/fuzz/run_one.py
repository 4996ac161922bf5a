"""Fuzz one kind of file in a process of its own: run_one.py KIND quick|full FOLDER.

The cases run in forks of it, which torch's autograd refuses once earlier tests have used it.
"""

import sys
from pathlib import Path

from tests.fuzz.checkpoint_files import CheckpointFiles
from tests.fuzz.coco_documents import CocoDocuments
from tests.fuzz.coco_results import CocoResults
from tests.fuzz.harness import Kind, faults_of, run_kind
from tests.fuzz.image_files import ImageFiles
from tests.fuzz.report import figures
from tests.fuzz.yaml_configs import YamlConfigs

KINDS: dict[str, type[Kind]] = {
    kind.name: kind
    for kind in (CocoDocuments, CocoResults, YamlConfigs, ImageFiles, CheckpointFiles)
}


def main() -> None:
    """Run the cases; print the figures, and on stderr the faults."""
    name, words, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    kind = KINDS[name]()
    count = kind.quick if words == "quick" else kind.full
    outcomes = run_kind(kind, count, folder)
    sys.stdout.write(f"{figures(kind.name, outcomes)}\n")
    assert len({outcome.index for outcome in outcomes}) == count
    faults = [f"{number} x {first}\n" for first, number in faults_of(outcomes)]
    if faults:
        sys.exit(f"{folder}/faults holds the input of:\n{''.join(faults)}")


if __name__ == "__main__":
    main()
