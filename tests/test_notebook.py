"""The notebook of docs/ runs from the first cell to the last, with fewer training steps."""

import os
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

NOTEBOOK = REPOSITORY / "docs" / "own_data.ipynb"
SHORTER = {"STEPS = 400\n": "STEPS = 4\n", "num_train=240": "num_train=40"}


@pytest.mark.extended
@pytest.mark.timeout(1200)
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    # `resdet` is that of this environment, and runs this repository's code
    monkeypatch.setenv("PATH", os.pathsep.join([f"{sys.prefix}/bin", os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert len(notebook.cells) == 10
    assert [each for each in notebook.cells if each.get("outputs")] == []
    for long, short in SHORTER.items():
        assert sum(long in cell.source for cell in notebook.cells) == 1
        for cell in notebook.cells:
            cell.source = cell.source.replace(long, short)
    client = NotebookClient(
        notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    # a command that fails does not stop a notebook
    for name in ("metrics.json", "report.html", "test/metrics.json", "model.onnx"):
        assert (tmp_path / "runs" / "mine" / name).is_file()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/jpeg" in output.get("data", {}) for output in outputs) == 1
