"""ILSVRC's detection data: its layout, and its classes by WordNet id (WNID)."""

import re
from collections import Counter
from pathlib import Path

from detection.datasets.voc import Category, ImageSet, folder_set, read_names
from engine import paths
from engine.errors import UserError
from engine.files import read_lines

# map_det.txt of the devkit has `WNID number name`, lists of words have `WNID name, name ...`
SYNSET = re.compile(r"(n\d{8})\s+(?:(\d+)\s+)?(\S.*)")


def ilsvrc_set(root: Path, name: str) -> ImageSet:
    """Find a set of the detection task: `train`, `train_17`, `val`, or a list of your own, `val1`.

    ImageSets/DET/NAME.txt lists it, relative to the folder of the split with which NAME begins.
    Where there is no such list, it is all XML files of the folder Annotations/DET/NAME.

    Raises:
        UserError: neither is there.
    """
    split = re.match("train|val|test", name)
    if split is None:
        raise UserError(f"{name}: expected a set whose name begins with train, val or test")
    xml, images = f"Annotations/DET/{split[0]}", f"Data/DET/{split[0]}"
    listed = root / "ImageSets" / "DET" / f"{name}.txt"
    if paths.is_file(listed):
        return ImageSet(xml, images, read_names(listed))
    if name != split[0]:
        raise UserError(f"{listed}: no such list")
    return folder_set(root, xml=xml, images=images)


def read_synsets(names: Path, wnids: Path | None = None) -> dict[str, Category]:
    """Return the classes by WNID; of several names of one class the first.

    Args:
        names: `WNID number name` or `WNID name` on each line.
        wnids: list of those among them that are classes, 200 in ILSVRC; None takes all.

    Raises:
        UserError: a file cannot be read or is of another form, or classes are not unique.
    """
    synsets = {}
    for position, line in enumerate(read_lines(names), start=1):
        match = SYNSET.fullmatch(line)
        if match is None:
            expected = "expected a WNID, perhaps a number, and a name"
            raise UserError(f"{names}: entry {position}: {expected}, got {line!r:.60}")
        synsets[match[1]] = (match[2], match[3].split(",")[0].strip())
    chosen = list(synsets) if wnids is None else list(dict.fromkeys(read_names(wnids)))
    for wnid in chosen:
        if wnid not in synsets:
            raise UserError(f"{names}: expected a name for {wnid}, got none")
    numbers = [synsets[wnid][0] for wnid in chosen]
    if None in numbers:
        numbers = [str(number) for number in range(1, len(chosen) + 1)]
    classes = {
        wnid: Category(int(number or 0), synsets[wnid][1])
        for wnid, number in zip(chosen, numbers, strict=True)
    }
    for what in Category._fields:
        counts = Counter(getattr(category, what) for category in classes.values())
        value, count = counts.most_common(1)[0]
        if count > 1:
            raise UserError(f"{names}: {what}: expected each one once, got {value} {count} times")
    return classes
