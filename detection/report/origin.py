"""Where a report comes from: files with their hashes, config, training curves, environment."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from backbones.plots import SCORES, loss_names
from detection.report.charts import LINE_COLORS, Line, line_chart
from detection.report.markup import Markup, escaped, number, percent, table
from detection.report.page import Section, side_by_side
from engine.checksum import file_digest
from engine.log import read_metrics
from engine.paths import is_file, read_text
from engine.provenance import current_commit, describe_machine
from engine.run_files import CONFIG_FILE, LOG_FILE

_PACKAGES = ("torch", "torchvision", "numpy", "pycocotools", "resdet")
_MOST_POINTS = 500  # of a training curve


def origin(files: Mapping[str, Path]) -> dict[str, Any]:
    """Return sha256 of files, versions of packages, the machine and the commit of this code.

    Args:
        files: by what they are, such as "annotations".

    Raises:
        UserError: a file cannot be read.
    """
    return {
        "files": {
            name: {"path": str(path), "sha256": file_digest(path)} for name, path in files.items()
        },
        "packages": {name: _version_of(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "system": platform.platform(),
        "machine": describe_machine(torch.device("cpu")),
        "commit": current_commit(),
    }


def read_curves(folder: Path) -> dict[str, dict[str, list[Any]]]:
    """Return the training curves of a run: by kind (`train`, `eval`), each metric's values.

    A kind has `step` too. Empty if there is no metrics.jsonl. Metrics of single classes are left
    out, and long curves are thinned to about `_MOST_POINTS` lines.
    """
    if not is_file(folder / LOG_FILE):
        return {}
    records, _ = read_metrics(folder / LOG_FILE)
    curves: dict[str, dict[str, list[Any]]] = {}
    for kind in ("train", "eval"):
        lines = [each for each in records if each["kind"] == kind]
        lines = lines[:: max(1, len(lines) // _MOST_POINTS)]
        names = {
            name: None
            for line in lines
            for name, value in line.items()
            if "/" not in name and name != "kind" and (value is None or _is_number(value))
        }
        if lines:
            curves[kind] = {name: [line.get(name) for line in lines] for name in names}
    return curves


def training_section(curves: Mapping[str, Mapping[str, Sequence[Any]]]) -> Section:
    """Return the charts of losses, learning rate and scores over steps."""
    charts = []
    train = curves.get("train", {})
    losses = [name for name in loss_names(train) if any(train[name])]
    if losses:
        charts.append(_chart("Training losses", train, losses))
    if "lr" in train:
        charts.append(_chart("Learning rate", train, ["lr"]))
    scored = curves.get("eval", {})
    names = [name for name in SCORES if name in scored]
    if names:
        charts.append(_chart("Validation", scored, names, y_range=(0, 1)))
        rows = [
            (number(step, digits=0), *(percent(scored[name][place]) for name in names))
            for place, step in enumerate(scored["step"])
        ]
        charts.append(table(("step", *names), rows, caption="Evaluations, in percent"))
    lead = "Losses and scores over steps, from metrics.jsonl of the run."
    return Section("training", "Training", lead, side_by_side(*charts) if charts else "")


def _chart(
    title: str,
    curves: Mapping[str, Sequence[Any]],
    names: Sequence[str],
    y_range: tuple[float, float] | None = None,
) -> str:
    shown = names[:LINE_COLORS]
    lines = [Line(name, curves["step"], _numbers(curves[name])) for name in shown]
    cut = "" if len(shown) == len(names) else f", {len(shown)} of {len(names)}"
    return line_chart(lines, title=f"{title}{cut}", x_name="step", y_range=y_range)


def origin_section(
    source: Mapping[str, Any], config: str | None, starts: Sequence[Mapping[str, Any]]
) -> Section:
    """Return files, versions, machine and config.

    Args:
        source: from `origin`.
        config: the config.yaml of the run; None without a run.
        starts: from `read_starts`: where the run was started and resumed.
    """
    rows = [
        (f"{name}: {each['path']}", Markup(f"<code>{escaped(each['sha256'])}</code>"))
        for name, each in source["files"].items()
    ]
    files = table(("file", "sha256"), rows, caption="Files", sortable=False)
    packages = ", ".join(f"{name} {value}" for name, value in source["packages"].items())
    facts = [
        ("packages", packages),
        ("python", f"{source['python']} on {source['system']}"),
        ("machine", source["machine"]),
        ("commit of this report's code", source["commit"]),
    ]
    body = files + table(("", ""), facts, caption="Environment", sortable=False)
    if starts:
        keys = ("step", "commit", "machine", "python")
        cells = [tuple(each[key] for key in keys) for each in starts]
        body += table(keys, cells, caption="Starts of the training", sortable=False)
    if config is not None:
        body += f"<details><summary>config.yaml</summary><pre>{_lines(config)}</pre></details>"
    lead = "What to keep with the numbers, so that they can be repeated."
    return Section("origin", "Data, config, environment", lead, body)


def read_config_text(folder: Path) -> str | None:
    """Return the config.yaml of a run folder as text; None if there is none."""
    path = folder / CONFIG_FILE
    return read_text(path) if is_file(path) else None


def _lines(text: str) -> str:
    return "\n".join(escaped(line) for line in text.splitlines())


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _numbers(values: Sequence[Any]) -> list[float | None]:
    return [float(value) if _is_number(value) else None for value in values]
