"""Layout and classes of ILSVRC's detection data set; classes are WordNet ids (WNIDs)."""

import re
from collections import Counter
from pathlib import Path

from detection.datasets.voc import Category, ImageSet, folder_set, read_names
from engine import paths
from engine.errors import UserError
from engine.files import read_lines

# map_det.txt of the devkit has `WNID number name`, files like words.txt `WNID name, name ...`
SYNSET = re.compile(r"(n\d{8})\s+(?:(\d+)\s+)?(\S.*)")


def ilsvrc_set(root: Path, name: str) -> ImageSet:
    """Find an image set of the detection task: `train`, `train_17`, `val`, or a custom `val1`.

    ImageSets/DET/NAME.txt lists its images, relative to the folder of the split with which NAME
    begins. Without such a list, the set is all XML files of the folder Annotations/DET/NAME.

    Raises:
        UserError: neither the list nor the folder exists.
    """
    split = re.match("train|val|test", name)
    if split is None:
        raise UserError(f"{name}: expected a set whose name begins with train, val or test")
    # lists such as train_17 or val1 use the folders of train and val
    xml, images = f"Annotations/DET/{split[0]}", f"Data/DET/{split[0]}"
    listed = root / "ImageSets" / "DET" / f"{name}.txt"
    if paths.is_file(listed):
        return ImageSet(xml, images, read_names(listed))
    if name != split[0]:
        raise UserError(f"{listed}: no such file")
    return folder_set(root, xml=xml, images=images)


def read_synsets(names: Path, wnids: Path | None = None) -> dict[str, Category]:
    """Read the classes by WNID, each with the first of its names.

    Args:
        names: file with `WNID number name` or `WNID name, name ...` on each line.
        wnids: file that lists the WNIDs to use as classes (200 in ILSVRC); None uses all.

    Raises:
        UserError: a file cannot be read or is malformed, or classes are not unique.
    """
    synsets = {}
    for position, line in enumerate(read_lines(names), start=1):
        match = SYNSET.fullmatch(line)
        if match is None:
            expected = "expected a WNID, an optional number, and a name"
            raise UserError(f"{names}: entry {position}: {expected}, got {line!r:.60}")
        # WNID -> (number or None, first name)
        synsets[match[1]] = (match[2], match[3].split(",")[0].strip())
    # dict.fromkeys removes repeated WNIDs and keeps their order
    chosen = list(synsets) if wnids is None else list(dict.fromkeys(read_names(wnids)))
    for wnid in chosen:
        if wnid not in synsets:
            raise UserError(f"{names}: expected a name for {wnid}, got none")
    numbers = [synsets[wnid][0] for wnid in chosen]
    if None in numbers:  # number all of them, or ids could be repeated
        numbers = [str(number) for number in range(1, len(chosen) + 1)]
    classes = {
        wnid: Category(int(number or 0), synsets[wnid][1])
        for wnid, number in zip(chosen, numbers, strict=True)
    }
    for field in Category._fields:  # neither ids nor names may be repeated
        counts = Counter(getattr(category, field) for category in classes.values())
        value, count = counts.most_common(1)[0]
        if count > 1:
            raise UserError(f"{names}: {field}: expected unique values, got {value} {count} times")
    return classes
