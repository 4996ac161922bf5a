"""The configs that come with this project."""

from pathlib import Path

from engine.paths import is_file

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
"""In a checkout its own folder; installed, a folder beside the packages."""


def find_config(path: Path) -> Path:
    """Return `path`, or the config of that name that comes with this project.

    Installed, `configs/detection/demo.yaml` names the demo's config from any folder; a file of the
    user's with the same path goes first.
    """
    shipped = CONFIGS.joinpath(*path.parts[1:])
    if path.parts[:1] == ("configs",) and not is_file(path) and is_file(shipped):
        return shipped
    return path
