"""Path of the image of a `file_name`; one rule for the check at the start and for reading."""

from collections.abc import Callable, Iterable
from pathlib import Path

from engine import paths
from engine.errors import UserError


def image_path(
    folder: str | Path, name: str, *, is_file: Callable[[str | Path], bool] = paths.is_file
) -> Path:
    """Return the path of an image.

    Names are relative to the folder. Some tools write a leading slash: such a name is relative too,
    and absolute only if the folder has no such file. A backslash is taken for a Windows path
    separator if no file has it in its name.

    Args:
        folder: folder of the images.
        name: `file_name` of a COCO JSON, or its counterpart in another format.
        is_file: checks whether a path is a file; called only if the name is ambiguous.

    Returns:
        The first candidate path that is a file, or the first candidate if none is.

    Raises:
        UserError: the system cannot check the path, as for a name of over 255 bytes.
    """
    candidates = _candidates(str(folder), name)
    if len(candidates) == 1:
        return Path(candidates[0])
    return Path(next((candidate for candidate in candidates if is_file(candidate)), candidates[0]))


def _candidates(folder: str, name: str) -> list[str]:
    """Return the paths that a name can mean, in order of preference."""
    names = [name, name.replace("\\", "/")] if "\\" in name else [name]
    candidates = []
    for each in names:
        candidates.append(f"{folder}/{each.lstrip('/')}")
        if each.startswith("/"):
            candidates.append(each)
    return candidates


def unreadable_images(folder: str | Path, names: Iterable[str]) -> dict[int, str]:
    """Return the reason for each image that cannot be read, by its index in `names`.

    Folders are listed, which is faster than checking each file. Only files that are not in the
    listing are opened.

    Args:
        folder: folder of the images.
        names: as for `image_path`.
    """
    listings: dict[str, set[str]] = {}

    def is_file(path: str | Path) -> bool:
        parent, _, last = str(path).rpartition("/")
        if parent not in listings:
            listings[parent] = _files_in(parent)
        # Not listed, but it may exist: some file systems ignore case or normalise Unicode.
        return last in listings[parent] or _is_file(path)

    found = {}
    for place, name in enumerate(names):
        candidates = _candidates(str(folder), name)
        if not any(is_file(candidate) for candidate in candidates):
            found[place] = _reason(Path(candidates[0]))
    return found


def _files_in(folder: str) -> set[str]:
    try:
        return paths.files_in(f"{folder}/")
    except UserError:  # each of its files is then checked on its own, and gives the reason
        return set()


def _is_file(path: str | Path) -> bool:
    try:
        return paths.is_file(Path(path))
    except UserError:
        return False


def _reason(path: Path) -> str:
    try:
        with paths.open_file(path):
            return "changed while it was checked"
    except UserError as error:
        return str(error).rpartition(": ")[2]  # without the path, which the caller names
