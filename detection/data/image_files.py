"""Where the image of a `file_name` lies: one rule for the check at the start and for reading."""

from collections.abc import Callable, Iterable
from pathlib import Path

from engine import paths
from engine.errors import UserError


def image_path(
    folder: str | Path, name: str, *, is_file: Callable[[str | Path], bool] = paths.is_file
) -> Path:
    """Return the path of an image.

    A name is relative to the folder. So is one with a leading slash, which some tools write; it is
    an absolute path only where the folder has no such file. A backslash is Windows' slash where no
    file has it in its name.

    Args:
        folder: of the images.
        name: `file_name` of a COCO JSON, or what another format has for it.
        is_file: says whether a path is one; asked only where a name can be read in several ways.

    Returns:
        The first reading that is a file; the first of all where none is.

    Raises:
        UserError: the system gives no answer, as for a name of over 255 bytes.
    """
    readings = _readings(str(folder), name)
    if len(readings) == 1:
        return Path(readings[0])
    return Path(next((reading for reading in readings if is_file(reading)), readings[0]))


def _readings(folder: str, name: str) -> list[str]:
    names = [name, name.replace("\\", "/")] if "\\" in name else [name]
    readings = []
    for each in names:
        readings.append(f"{folder}/{each.lstrip('/')}")
        if each.startswith("/"):
            readings.append(each)
    return readings


def unreadable_images(folder: str | Path, names: Iterable[str]) -> dict[int, str]:
    """Return why images cannot be read, by their places in `names`; the others are left out.

    Folders are listed; no file is opened but those about which the listing says nothing good.

    Args:
        folder: of the images.
        names: as for `image_path`.
    """
    listings: dict[str, set[str]] = {}

    def is_file(path: str | Path) -> bool:
        parent, _, last = str(path).rpartition("/")
        if parent not in listings:
            listings[parent] = _files_in(parent)
        # a file system may take other spellings than it lists
        return last in listings[parent] or _is_file(path)

    found = {}
    for place, name in enumerate(names):
        readings = _readings(str(folder), name)
        if not any(is_file(reading) for reading in readings):
            found[place] = _reason(Path(readings[0]))
    return found


def _files_in(folder: str) -> set[str]:
    try:
        return paths.files_in(f"{folder}/")
    except UserError:  # each file in it is asked for, and says so
        return set()


def _is_file(path: str | Path) -> bool:
    try:
        return paths.is_file(Path(path))
    except UserError:
        return False


def _reason(path: Path) -> str:
    try:
        with paths.open_file(path):
            return "changes while it is looked at"
    except UserError as error:
        return str(error).rpartition(": ")[2]
