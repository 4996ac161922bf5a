"""Lookup of config files: the user's own, and those that are installed with this project."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path

from engine.errors import UserError
from engine.paths import exists, is_file, is_folder, names_in

_PACKAGE = Path(__file__).resolve().parents[1]
CONFIGS = _PACKAGE / "configs" if is_folder(_PACKAGE / "configs") else _PACKAGE.parent / "configs"
"""The folder of the config files: `detection/configs` installed, `configs` in the repository."""

TRAIN_FOLDERS = ("detection", "segmentation", "localization")
PRETRAIN_FOLDERS = ("backbones",)
ALL_FOLDERS = (*TRAIN_FOLDERS, *PRETRAIN_FOLDERS)


def find_config(
    path: Path, folders: Sequence[str] = ALL_FOLDERS, *, others: Iterable[str] = ()
) -> Path:
    """Return the config file that a command line names.

    A file at `path` comes first. Otherwise `configs/detection/demo.yaml` names the installed file
    in any working directory, as do, without suffix, `detection/demo` and `demo`.

    Args:
        path: what the user wrote.
        folders: those of CONFIGS that hold configs of the command. If several have a name, the
            name alone means that of the first folder.
        others: what else the command accepts, for the message.

    Returns:
        The file; `path` itself if it has a suffix or is a folder, for the caller to report.

    Raises:
        UserError: no config has the name, or several have it.
    """
    if is_file(path):
        return path
    if path.suffix:
        shipped = CONFIGS.joinpath(*path.parts[1:])  # without the leading "configs"
        return shipped if path.parts[:1] == ("configs",) and is_file(shipped) else path
    found = _configs_named(path, folders)
    found = [each for each in found if each.startswith(f"{folders[0]}/")] or found
    own = [f"{path}.yaml"] if is_file(f"{path}.yaml") else []
    if found and len(own + found) > 1:
        raise UserError(f"{path}: expected one config, got {' and '.join(own + found)}")
    if found:
        return CONFIGS / f"{found[0]}.yaml"
    if exists(path):
        return path
    elsewhere = _configs_named(path, ALL_FOLDERS)
    names = config_names(folders)
    known = [*others, *(Path(each).name for each in names), *names]
    near = own or get_close_matches(str(path), known, n=1)
    if elsewhere and not own:
        hint = f"; {elsewhere[0]} is for another command"
    else:
        hint = f"; nearest: {near[0]}" if near else ""
    raise UserError(
        f"{path}: expected a YAML file{''.join(f', {each}' for each in others)} or a config of "
        f"`resdet config --list`, got neither{hint}"
    )


def config_names(folders: Sequence[str]) -> list[str]:
    """Return the names of the installed configs, such as `detection/demo`, folder by folder."""
    return [
        f"{folder}/{name.removesuffix('.yaml')}"
        for folder in folders
        for name in names_in(CONFIGS / folder, "*.yaml")
    ]


def _configs_named(path: Path, folders: Sequence[str]) -> list[str]:
    """Return the names of the installed configs that `path` means, with or without the folder."""
    return [each for each in config_names(folders) if str(path) in (each, Path(each).name)]
