"""ILSVRC's detection data set: image sets, classes, conversion to COCO."""

from pathlib import Path

import pytest

from detection.datasets.ilsvrc import ilsvrc_set, read_synsets
from detection.datasets.voc import Category, ImageSet
from detection.datasets.voc_to_coco import convert
from engine.errors import UserError
from tests.detection.datasets.voc_files import write_image, write_xml

ANT, BEE = "n02219486", "n02206856"
DEVKIT = f"{BEE} 2 bee\n{ANT} 1 ant\n"
WORDS = f"{BEE}\tbee, apian insect\nn02084071\tdog, domestic dog\n{ANT}\tant, emmet, pismire\n"


def write_ilsvrc(root: Path) -> None:
    """Write two training images in two folders, two validation images, and three lists."""
    files = {
        "train/ILSVRC2013_train/n02219486/n02219486_7": [(ANT, 0, 0, 30, 20, "")],
        "train/ILSVRC2014_train_0000/ILSVRC2014_train_00000001": [],
        "val/ILSVRC2012_val_00000001": [(BEE, 10, 10, 20, 30, ""), (ANT, 5, 5, 60, 40, "")],
        "val/ILSVRC2012_val_00000002": [],
    }
    for name, objects in files.items():
        write_xml(root / "Annotations" / "DET" / f"{name}.xml", objects)
        write_image(root / "Data" / "DET" / f"{name}.JPEG")
    lists = {
        "val": "ILSVRC2012_val_00000001 1\nILSVRC2012_val_00000002 2\n",
        "val1": "ILSVRC2012_val_00000002 1\n",
        "train_1": "ILSVRC2013_train/n02219486/n02219486_7 1\n",
    }
    (root / "ImageSets" / "DET").mkdir(parents=True)
    for name, content in lists.items():
        (root / "ImageSets" / "DET" / f"{name}.txt").write_text(content)


def test_sets_by_list_and_by_folder(tmp_path: Path) -> None:
    write_ilsvrc(tmp_path)
    val = "ILSVRC2012_val_00000001", "ILSVRC2012_val_00000002"
    one = "ILSVRC2013_train/n02219486/n02219486_7"
    train = one, "ILSVRC2014_train_0000/ILSVRC2014_train_00000001"
    for name, split, names in (
        ("val", "val", val),
        ("val1", "val", val[1:]),
        ("train_1", "train", (one,)),
        ("train", "train", train),
    ):
        expected = ImageSet(f"Annotations/DET/{split}", f"Data/DET/{split}", names)
        assert ilsvrc_set(tmp_path, name) == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("trian", "trian: expected a set whose name begins with train, val or test"),
        ("val2", r"ImageSets/DET/val2\.txt: no such file"),
        ("test", r"Annotations/DET/test: expected XML files, got none"),
    ],
    ids=["name", "list", "folder"],
)
def test_missing_set(tmp_path: Path, name: str, message: str) -> None:
    write_ilsvrc(tmp_path)
    with pytest.raises(UserError, match=message):
        ilsvrc_set(tmp_path, name)


def test_classes_of_the_devkit_and_of_a_words_file(tmp_path: Path) -> None:
    names, wnids = tmp_path / "names.txt", tmp_path / "wnids.txt"
    names.write_text(DEVKIT)
    wnids.write_text(f"{ANT}\n{BEE}\n")
    expected = {ANT: Category(1, "ant"), BEE: Category(2, "bee")}
    assert read_synsets(names) == expected
    names.write_text(WORDS)
    assert read_synsets(names, wnids) == expected
    assert read_synsets(names)[ANT] == Category(3, "ant")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("", r"names\.txt: expected at least one line, got none"),
        (f"{ANT} 1 ant\nbee\n", r"entry 2: expected a WNID, an optional number, .*got 'bee'"),
        (f"{ANT} 1 ant\n{BEE} 1 bee\n", "category_id: expected unique values, got 1 2 times"),
        (f"{ANT} 1 ant\n{BEE} 2 ant\n", "name: expected unique values, got ant 2 times"),
        (f"{ANT} 1 ant\n", f"expected a name for {BEE}, got none"),
    ],
    ids=["empty", "malformed", "number twice", "name twice", "no name"],
)
def test_bad_lists_of_classes(tmp_path: Path, names: str, message: str) -> None:
    (tmp_path / "names.txt").write_text(names)
    (tmp_path / "wnids.txt").write_text(f"{ANT}\n{BEE}\n")
    with pytest.raises(UserError, match=message):
        read_synsets(tmp_path / "names.txt", tmp_path / "wnids.txt")


def test_two_sets_become_one_document(tmp_path: Path) -> None:
    write_ilsvrc(tmp_path)
    (tmp_path / "names.txt").write_text(DEVKIT)
    sets = [ilsvrc_set(tmp_path, name) for name in ("train", "val")]
    classes = read_synsets(tmp_path / "names.txt")
    document = convert(tmp_path, sets, classes=classes, boxes="corners").document
    assert [image["file_name"] for image in document["images"]] == [
        "Data/DET/train/ILSVRC2013_train/n02219486/n02219486_7.JPEG",
        "Data/DET/train/ILSVRC2014_train_0000/ILSVRC2014_train_00000001.JPEG",
        "Data/DET/val/ILSVRC2012_val_00000001.JPEG",
        "Data/DET/val/ILSVRC2012_val_00000002.JPEG",
    ]
    found = [(a["image_id"], a["category_id"], a["bbox"]) for a in document["annotations"]]
    assert found == [(1, 1, [0, 0, 30, 20]), (3, 2, [10, 10, 10, 20]), (3, 1, [5, 5, 55, 35])]
    assert {(c["id"], c["name"]) for c in document["categories"]} == {(1, "ant"), (2, "bee")}
