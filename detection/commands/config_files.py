"""Lookup of the config files that are installed with this project."""

from pathlib import Path

from engine.paths import is_file

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
"""The folder `configs` of the checkout, or beside the installed packages."""


def find_config(path: Path) -> Path:
    """Return `path` if it exists, else this project's config of the same name if there is one.

    So `configs/detection/demo.yaml` names the demo's config in any working directory. A file of the
    user at that path takes precedence.
    """
    shipped = CONFIGS.joinpath(*path.parts[1:])  # without the leading "configs"
    if path.parts[:1] == ("configs",) and not is_file(path) and is_file(shipped):
        return shipped
    return path
