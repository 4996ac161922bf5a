"""File names of images: names from foreign tools, and the images of a folder that they mean."""

import posixpath
import re
from pathlib import Path, PurePosixPath

from backbones.images import BadImageError, images_in
from detection.data.coco_json import shown
from engine.errors import UserError

_DRIVE = re.compile(r"[A-Za-z]:/")


def posix_name(name: str) -> str:
    """Return a file name with forward slashes, without `.` parts and without a drive."""
    name = posixpath.normpath(_DRIVE.sub("", name.strip().replace("\\", "/"), count=1))
    return name.lstrip("/")


def safe_parts(name: str) -> PurePosixPath:
    """Return a file name as a relative path that stays below its folder.

    Raises:
        UserError: it leaves the folder, or no file can have this name.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    leaves = path.is_absolute() or ".." in path.parts or _DRIVE.match(str(path) + "/")
    if leaves or not path.parts or "\0" in name:
        expected = "expected a file name below the output folder"
        raise UserError(f"image {shown(name)}: {expected}, got one that leaves it")
    return path


class ImageIndex:
    """The images of a folder, found by names that may have other folders in front."""

    def __init__(self, folder: Path) -> None:
        """List the folder.

        Raises:
            UserError: it cannot be read.
        """
        self.folder = folder
        names, _ = images_in(folder)
        self._names = set(names)
        self._by_name: dict[str, list[str]] = {}
        self._by_stem: dict[str, list[str]] = {}
        for name in names:
            last = name.rpartition("/")[2].casefold()
            self._by_name.setdefault(last, []).append(name)
            self._by_stem.setdefault(last.rpartition(".")[0], []).append(name)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._names)

    def find(self, name: str, *, stem_only: bool = False) -> str | None:
        """Return the image of a name, relative to the folder; None if there is none.

        It is the image of the same name, upper and lower case being equal, that shares most of its
        last folders with the name.

        Args:
            name: a path with `/`.
            stem_only: the name has no suffix, any suffix will do.

        Raises:
            BadImageError: several images fit equally well.
        """
        if name in self._names and not stem_only:
            return name
        *folders, last = name.split("/")
        table = self._by_stem if stem_only else self._by_name
        found = [(_shared(folders, each), each) for each in table.get(last.casefold(), ())]
        most = max((shared for shared, _ in found), default=0)
        best = [each for shared, each in found if shared == most]
        if len(best) > 1:
            what = f"{shown(best[0])} and {shown(best[1])}"
            raise BadImageError(f"{shown(name)}: expected one image in {self.folder}, got {what}")
        return best[0] if best else None


def _shared(folders: list[str], name: str) -> int:
    """Return how many of the last folders of a path `name` are the last ones of `folders`."""
    count = 0
    for mine, other in zip(reversed(folders), reversed(name.split("/")[:-1]), strict=False):
        if mine != other:
            break
        count += 1
    return count
