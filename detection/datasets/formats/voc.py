"""PASCAL VOC's XML files, one for each image, in VOC's folders or in any other."""

from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

from detection.datasets import voc
from detection.datasets.formats.checking import CheckedDocument
from detection.datasets.formats.document import (
    Document,
    FoundImage,
    FoundObject,
    ReadOptions,
    Tally,
    WriteOptions,
    choose_splits,
)
from detection.datasets.formats.folders import (
    CLASSES_FILE,
    class_lines,
    classes_beside,
    copy_images,
    number_text,
    output_names,
    write_folder,
)
from detection.datasets.formats.image_names import ImageIndex
from detection.datasets.voc_to_coco import read_image_sets
from engine import paths
from engine.errors import UserError

XML_FOLDER, IMAGE_FOLDER = "Annotations", "JPEGImages"
PARTS = ("train", "valid", "val", "test")
"""Folders of Roboflow's and other exports, each with XML files and images."""


def read(source: Path, options: ReadOptions) -> Document:
    """Read a folder in VOC's layout, any folder of XML files, or one XML file.

    `options.split` is a list in ImageSets/Main, such as `trainval` or `VOC2007/trainval`; None
    takes all XML files. Or it is one of the folders `PARTS`, if there are several. Images have the
    names of the XML files. If there are no images at all, the XML files give names and sizes.

    Raises:
        UserError: there is no XML file, or the list cannot be read.
    """
    files: tuple[str, ...] = ()
    if not paths.is_folder(source):
        if source.suffix.lower() != ".xml":
            raise UserError(f"{source}: expected a folder of XML files or one of them, got another")
        source, files = source.parent, (source.stem,)
    in_layout = not files and paths.is_folder(source / XML_FOLDER)
    xml = XML_FOLDER if in_layout else "."
    beside = in_layout and options.images is None and paths.is_folder(source / IMAGE_FOLDER)
    images = IMAGE_FOLDER if beside else "."
    parts = [] if in_layout or files else [name for name in PARTS if paths.is_folder(source / name)]
    if files:
        sets = [voc.ImageSet(".", ".", files)]
    elif len(parts) > 1:
        chosen = choose_splits(options.split, parts, source)
        sets = [voc.folder_set(source, xml=name, images=name) for name in chosen]
    elif options.split:
        sets = [voc.voc_set(source, options.split)]
    else:
        sets = [voc.folder_set(source, xml=xml, images=images)]
    index = ImageIndex(options.images or source)
    has_images = options.images is not None or len(index) > 0
    document = read_image_sets(
        source,
        sets,
        boxes=options.boxes,
        images=options.images,
        index=index if options.images else None,
        with_images=has_images,
        log=options.log,
    )
    if not has_images:
        what = "it has no images; file names and sizes are those of the XML files"
        document.notes.append(f"{source}: {what}; --images DIR names the folder of the images")
    names = classes_beside(source, document.notes)
    document.classes = voc.number_classes(names) if names else None
    return document


def write(checked: CheckedDocument, output: Path, options: WriteOptions) -> list[str]:
    """Write Annotations/, a list of all images, and classes.txt, into a folder.

    Masks and crowd regions are dropped and counted. With `options.boxes` "pixels" coordinates are
    rounded to VOC's whole pixels, counted from 1.

    Raises:
        UserError: as for `write_folder`, or a file name leaves the folder.
    """
    dropped = Tally()
    named = output_names(checked.images, "", strip=IMAGE_FOLDER)
    files = _files(named, options, dropped)
    lists = (f"{name}\n" for _, name in named)

    def all_files() -> Iterator[tuple[str, str]]:
        for name, content in options.log.progress(files, len(named), "writing"):
            yield f"{XML_FOLDER}/{name}.xml", content
        yield "ImageSets/Main/all.txt", "".join(lists)
        yield CLASSES_FILE, class_lines(checked)

    count = write_folder(output, all_files(), force=options.force)
    lines = [f"{output}: {count - 2} XML files"]
    if options.copy_images != "no":
        target = output / IMAGE_FOLDER
        paired = [(image, f"{name}{Path(image.file_name).suffix}") for image, name in named]
        copied = copy_images(
            paired, options.images or checked.root, target, method=options.copy_images
        )
        lines.append(f"{target}: {sum(1 for _ in copied)} images")
    else:
        lines.append("images were not copied: --copy-images link or copy does, to JPEGImages")
    lines.append(f"to read it back: --from voc --boxes {options.boxes}")
    return lines + dropped.rows()


def _files(
    named: list[tuple[FoundImage, str]], options: WriteOptions, dropped: Tally
) -> Iterator[tuple[str, str]]:
    for image, name in named:
        assert image.size is not None
        height, width = image.size
        objects = "".join(_object(found, options, dropped) for found in image.objects)
        file_name = escape(Path(image.file_name).name)
        yield (
            name,
            (
                f"<annotation>\n\t<folder>{IMAGE_FOLDER}</folder>\n\t<filename>{file_name}</filename>\n"
                f"\t<size>\n\t\t<width>{width}</width>\n\t\t<height>{height}</height>\n"
                "\t\t<depth>3</depth>\n\t</size>\n\t<segmented>0</segmented>\n"
                f"{objects}</annotation>\n"
            ),
        )


def _object(found: FoundObject, options: WriteOptions, dropped: Tally) -> str:
    assert found.box is not None
    if found.is_crowd:
        dropped.add("dropped, crowd regions, which VOC does not have", found.where)
        return ""
    if found.polygons or found.run_lengths:
        dropped.add("dropped, polygons and masks of objects, whose boxes are kept")
    x1, y1, x2, y2 = found.box
    if options.boxes == "pixels":
        whole = round(x1) + 1, round(y1) + 1, round(x2), round(y2)
        if whole != (x1 + 1, y1 + 1, x2, y2):
            dropped.add("boxes rounded to whole pixels", found.where)
        corners = list(map(str, whole))
    else:
        corners = list(map(number_text, found.box))
    sides = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(
        f"\t\t\t<{side}>{value}</{side}>\n" for side, value in zip(sides, corners, strict=True)
    )
    return (
        f"\t<object>\n\t\t<name>{escape(found.name)}</name>\n\t\t<pose>Unspecified</pose>\n"
        f"\t\t<truncated>0</truncated>\n\t\t<difficult>{int(found.is_difficult)}</difficult>\n"
        f"\t\t<bndbox>\n{box}\t\t</bndbox>\n\t</object>\n"
    )
