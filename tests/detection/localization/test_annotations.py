"""Readers of Tiny ImageNet's and ILSVRC's layouts: annotations, dropped data, error messages."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detection.localization.annotations import LocalizationAnnotations
from detection.localization.ilsvrc import read_ilsvrc
from detection.localization.tiny_imagenet import read_tiny_imagenet
from engine.errors import UserError
from engine.schema import BadInputPolicy
from tests.detection.localization.tiny_localizer import write_tiny_imagenet

NO_SIZE = "boxes dropped (no width or height)"
WITHOUT_BOX = "images without a valid box dropped"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_imagenet(tmp_path)


def read(
    root: Path, split: str = "train", policy: BadInputPolicy = "skip"
) -> LocalizationAnnotations:
    names = None if split == "train" else ("blue", "red")
    return read_tiny_imagenet(
        root, split, class_names=names, on_bad_box=policy, on_bad_image="error"
    )


def test_tiny_imagenet_corners_include_the_last_pixel(tiny: Path) -> None:
    (tiny / "train/blue/blue_boxes.txt").write_text("blue_0.png\t0\t3\t31\t30\n")
    images = read(tiny)
    assert images.class_names == ("blue", "red")
    assert images.descriptions == ("blue patch", "red patch")
    assert images.paths[0] == "train/blue/images/blue_0.png"
    assert images.boxes_of(0).tolist() == [[0, 3, 32, 31]]
    assert images.labels.tolist() == [0, 1, 1, 1, 1]
    assert images.problems == {}
    val = read(tiny, "val")
    assert len(val) == 4
    assert val.labels.tolist() == [0, 0, 1, 1]


def test_bad_boxes_are_dropped_and_logged(tiny: Path) -> None:
    lines = ["blue_0.png\t5\t3\t5\t30", "blue_1.png\t1\t2\t20\t22", "blue_2.png\t40\t3\t50\t30"]
    (tiny / "train/blue/blue_boxes.txt").write_text("\n".join(lines))
    images = read(tiny)
    assert len(images) == 5
    assert images.problems == {
        NO_SIZE: ["blue_0.png (5, 3, 5, 30)"],
        "boxes dropped (outside its image)": ["blue_2.png (40, 3, 50, 30)"],
        WITHOUT_BOX: ["blue_0.png", "blue_2.png"],
    }
    assert any("1 boxes dropped (no width or height): blue_0" in x for x in images.lines())
    with pytest.raises(UserError, match=r"blue_0.png: expected a box with x1 < x2 and y1 < y2"):
        read(tiny, policy="error")


def test_mean_box_is_in_fractions_of_each_image(tiny: Path) -> None:
    (tiny / "train/blue/blue_boxes.txt").write_text("blue_0.png\t0\t0\t15\t15\n")
    (tiny / "train/red/red_boxes.txt").write_text("red_0.png\t16\t8\t31\t31\n")
    np.testing.assert_allclose(read(tiny).mean_box(), [0.25, 0.125, 0.75, 0.75])


def test_degenerate_boxes_of_real_data(data_dir: Path) -> None:
    root = data_dir / "tiny_imagenet_slice"
    images = read_tiny_imagenet(root, "train", on_bad_box="skip", on_bad_image="error")
    degenerate = [name.split()[0].removesuffix(".JPEG") for name in images.problems[NO_SIZE]]
    assert degenerate == [
        *("n01443537_425", "n02002724_196", "n02002724_273", "n02669723_364", "n02909870_124"),
        *("n02909870_75", "n03255030_14", "n03255030_48", "n03770439_370", "n03770439_386"),
        *("n07615774_134", "n07615774_157"),
    ]
    assert images.problems[WITHOUT_BOX] == [f"{name}.JPEG" for name in degenerate]
    assert len(images) == 610 - 12
    assert not set(images.problems[WITHOUT_BOX]) & {Path(path).name for path in images.paths}
    sides = images.boxes[:, 2:] - images.boxes[:, :2]
    assert sides.min() >= 2
    assert images.boxes.max() == 64
    val = read_tiny_imagenet(
        root, "val", class_names=images.class_names, on_bad_box="error", on_bad_image="error"
    )
    assert len(val) == 200
    assert val.problems == {}
    assert val.descriptions[0] == "goldfish"


XML = """<annotation><size><width>40</width><height>30</height></size>{}</annotation>"""
OBJECT = (
    "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>"
    "<ymax>{}</ymax></bndbox></object>"
)


def write_xml(root: Path, name: str, *objects: tuple[str, int, int, int, int]) -> None:
    path = root / f"Annotations/CLS-LOC/{name}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(XML.format("".join(OBJECT.format(*each) for each in objects)))
    image = root / f"Data/CLS-LOC/{name}.JPEG"
    image.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30)).save(image)


@pytest.fixture
def ilsvrc(tmp_path: Path) -> Path:
    """Two training images of two classes, one with two boxes; one validation image."""
    write_xml(tmp_path, "train/n02/n02_7", ("n02", 1, 2, 11, 12), ("n02", 0, 0, 40, 30))
    write_xml(tmp_path, "train/n01/n01_5", ("n01", 5, 5, 25, 20), ("n02", 1, 1, 9, 9))
    write_xml(tmp_path, "val/ILSVRC2012_val_1", ("n02", 3, 3, 33, 23))
    lists = tmp_path / "ImageSets/CLS-LOC"
    lists.mkdir(parents=True)
    (lists / "train_loc.txt").write_text("n02/n02_7 1\nn01/n01_5 2\n")
    (lists / "val.txt").write_text("ILSVRC2012_val_1 1\n")
    (tmp_path / "LOC_synset_mapping.txt").write_text("n01 tench, Tinca tinca\nn02 goldfish\n")
    return tmp_path


def test_ilsvrc_layout(ilsvrc: Path) -> None:
    images = read_ilsvrc(ilsvrc, "train", on_bad_box="error")
    assert images.class_names == ("n01", "n02")
    assert images.descriptions == ("tench", "goldfish")
    assert images.paths.tolist() == [
        "Data/CLS-LOC/train/n02/n02_7.JPEG",
        "Data/CLS-LOC/train/n01/n01_5.JPEG",
    ]
    assert images.labels.tolist() == [1, 0]
    assert images.boxes_of(0).tolist() == [[1, 2, 11, 12], [0, 0, 40, 30]]
    assert images.boxes_of(1).tolist() == [[5, 5, 25, 20]]
    assert images.sizes.tolist() == [[30, 40]] * 2
    problem = "boxes dropped (class differs from their image's)"
    assert images.problems == {problem: ["n01_5.xml (n02)"]}
    val = read_ilsvrc(ilsvrc, "val", class_names=("n01", "n02"), on_bad_box="error")
    assert val.paths.tolist() == ["Data/CLS-LOC/val/ILSVRC2012_val_1.JPEG"]
    assert val.labels.tolist() == [1]


def append(path: str, text: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        with (root / path).open("a") as file:
            file.write(text)

    return change


def remove(path: str) -> Callable[[Path], None]:
    return lambda root: (root / path).unlink()


def write(path: str, content: bytes) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / path).write_bytes(content)

    return change


def make_all_boxes_bad(root: Path) -> None:
    for name in ("blue", "red"):
        write(f"train/{name}/{name}_boxes.txt", f"{name}_0.png\t1\t1\t1\t1\n".encode())(root)


BOXES, VAL = "train/red/red_boxes.txt", "val/val_annotations.txt"
TINY_MISTAKES = {
    "no wnids": (remove("wnids.txt"), "wnids.txt: no such file"),
    "empty wnids": (write("wnids.txt", b"\n"), "wnids.txt: expected at least one line"),
    "no boxes": (remove(BOXES), "red_boxes.txt: no such file"),
    "bytes": (write(BOXES, b"\xff\xfe"), "red_boxes.txt: expected UTF-8 text"),
    "three numbers": (append(BOXES, "red_0.png\t1\t2\t3\n"), "line 5: expected NAME and x1"),
    "word": (append(BOXES, "red_0.png\t1\t2\t3\tx\n"), "red_boxes.txt: line 5: expected NAME"),
    "no image": (append(BOXES, "red_9.png\t1\t2\t3\t4\n"), "red_9.png: no such file"),
    "no val class": (append(VAL, "red_0.png\t1\t2\t3\t4\n"), "line 5: expected NAME, WNID"),
    "no val image": (append(VAL, "a.png\trad\t1\t2\t9\t9\n"), r"a\.png: no such file"),
    "class not in training": (
        append(VAL, "red_0.png\trad\t1\t2\t9\t9\n"),
        r"line 5: expected a training class \(nearest match: red\), got rad",
    ),
    "no valid box": (make_all_boxes_bad, "expected images with a valid box, got none"),
}


@pytest.mark.parametrize(("change", "message"), TINY_MISTAKES.values(), ids=TINY_MISTAKES)
def test_mistakes_in_tiny_imagenet(
    tiny: Path, change: Callable[[Path], None], message: str
) -> None:
    change(tiny)
    with pytest.raises(UserError, match=message) as caught:
        (read(tiny), read(tiny, "val"))
    assert "\n" not in str(caught.value)


def test_unreadable_images_are_skipped(tiny: Path, tmp_path: Path) -> None:
    append(BOXES, "red_9.png\t1\t2\t3\t4\n/etc/hostname\t1\t2\t3\t4\n")(tiny)
    with pytest.raises(UserError, match=r"\(2 bad in total; data.on_bad_image=skip skips them\)"):
        read(tiny)
    images = read_tiny_imagenet(tiny, "train", on_bad_box="error", on_bad_image="skip")
    assert images.problems == {"unreadable images skipped": ["red_9.png", "/etc/hostname"]}


TRAIN_XML = "Annotations/CLS-LOC/train/n02/n02_7.xml"
ILSVRC_MISTAKES = {
    "no list": (remove("ImageSets/CLS-LOC/train_loc.txt"), "train_loc.txt: no such file"),
    "no xml": (remove(TRAIN_XML), "n02_7.xml: no such file"),
    "invalid XML": (write(TRAIN_XML, b"<annotation>"), "n02_7.xml: not valid XML"),
    "no object": (write(TRAIN_XML, XML.format("").encode()), "expected at least one <object>"),
    "no size": (write(TRAIN_XML, b"<annotation/>"), "size: expected height and width, got none"),
    "no number": (
        write(TRAIN_XML, XML.format(OBJECT.format("n02", 1, 2, "x", 4)).encode()),
        r"n02_7.xml: object 1 \(n02\): bndbox: expected numbers",
    ),
    "bad box": (
        write(TRAIN_XML, XML.format(OBJECT.format("n02", 1, 2, 1, 4)).encode()),
        "n02_7.JPEG: expected a box with x1 < x2 and y1 < y2 in an image of 40x30",
    ),
}


@pytest.mark.parametrize(("change", "message"), ILSVRC_MISTAKES.values(), ids=ILSVRC_MISTAKES)
def test_mistakes_in_ilsvrc(ilsvrc: Path, change: Callable[[Path], None], message: str) -> None:
    change(ilsvrc)
    with pytest.raises(UserError, match=message) as caught:
        read_ilsvrc(ilsvrc, "train", on_bad_box="error")
    assert "\n" not in str(caught.value)


def test_ilsvrc_without_an_image(ilsvrc: Path) -> None:
    (ilsvrc / "Data/CLS-LOC/train/n02/n02_7.JPEG").unlink()
    write("Annotations/CLS-LOC/train/n01/n01_5.xml", b"<annotation>")(ilsvrc)
    write_xml(ilsvrc, "train/n01/n01_6", ("n01", 5, 5, 25, 20))
    append("ImageSets/CLS-LOC/train_loc.txt", "n01/n01_6 3\n")(ilsvrc)
    with pytest.raises(UserError, match=r"n02_7.JPEG: no such file \(2 bad in total; data.on_bad_"):
        read_ilsvrc(ilsvrc, "train", on_bad_box="error")
    images = read_ilsvrc(ilsvrc, "train", on_bad_box="error", on_bad_image="skip")
    assert images.paths.tolist() == ["Data/CLS-LOC/train/n01/n01_6.JPEG"]
    assert len(images.problems["unreadable images skipped"]) == 2
