"""Download of public data sets, with resuming, checksums and unpacking.

The URLs and checksums of VOC and CIFAR-10 are torchvision's, whose data sets read the same files.
COCO publishes no checksums; those here come from TensorFlow Datasets.
"""

import hashlib
import http.client
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from torchvision.datasets import CIFAR10
from torchvision.datasets.voc import DATASET_YEAR_DICT

from engine.checkpoint import prepare_output
from engine.errors import UserError
from engine.log import RunLog
from engine.paths import is_file, is_folder, names_in, open_file, status_of
from engine.text import one_line

CHUNK_BYTES = 10**6
TIMEOUT_S = 60.0
# Errors of zipfile: BadZipFile for a damaged file; RuntimeError for a password, or its subclass for
# an unknown compression method.
_ZIP_ERRORS = (zipfile.BadZipFile, RuntimeError)
GB = 10**9


@dataclass(frozen=True)
class Archive:
    """A file to download and unpack.

    checksum: `md5:` or `sha256:` and the digest. size, unpacked_size: bytes. contents: paths that
    exist after unpacking, with the minimum number of entries of a folder, or 1 for a file.
    """

    url: str
    checksum: str
    size: int
    unpacked_size: int
    contents: Mapping[str, int]

    @property
    def name(self) -> str:
        """The file name."""
        return self.url.rsplit("/", 1)[1]

    def is_unpacked(self, root: Path) -> bool:
        """Return whether all of `contents` exists under `root`."""
        return all(_count(root / path) >= count for path, count in self.contents.items())


def _voc(key: str, *, size: int, list_name: str, images: int) -> Archive:
    known = DATASET_YEAR_DICT[key]
    year = known["base_dir"]
    contents = {f"{year}/JPEGImages": images, f"{year}/ImageSets/Main/{list_name}.txt": 1}
    return Archive(known["url"], f"md5:{known['md5']}", size, size, contents)


_COCO = "http://images.cocodataset.org"
DATA_SETS: dict[str, tuple[Archive, ...]] = {
    "coco": (
        Archive(
            f"{_COCO}/annotations/annotations_trainval2017.zip",
            "sha256:113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
            size=252_907_541,
            unpacked_size=900_000_000,
            contents={
                "annotations/instances_train2017.json": 1,
                "annotations/instances_val2017.json": 1,
            },
        ),
        Archive(
            f"{_COCO}/zips/val2017.zip",
            "sha256:4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
            size=815_585_330,
            unpacked_size=830_000_000,
            contents={"val2017": 5_000},
        ),
        Archive(
            f"{_COCO}/zips/train2017.zip",
            "sha256:69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
            size=19_336_861_798,
            unpacked_size=19_700_000_000,
            contents={"train2017": 118_287},
        ),
    ),
    # both archives of 2007 unpack into the same folders
    "voc2007": (
        _voc("2007", size=460_032_000, list_name="trainval", images=5_011),
        _voc("2007-test", size=451_020_800, list_name="test", images=5_011 + 4_952),
    ),
    "voc2012": (_voc("2012", size=1_999_639_040, list_name="trainval", images=17_125),),
    "cifar10": (
        Archive(
            CIFAR10.url,
            f"md5:{CIFAR10.tgz_md5}",
            size=170_498_071,
            unpacked_size=186_000_000,
            contents={CIFAR10.base_folder: 8},
        ),
    ),
}


def download(archives: Sequence[Archive], root: Path, log: RunLog) -> None:
    """Download and unpack the missing archives; an interrupted download is resumed.

    The archives are kept beside their contents; the user may delete them.

    Args:
        archives: in download order.
        root: folder for all files; created if it is missing.
        log: shows the progress.

    Raises:
        UserError: not enough free disk, no connection, or a file differs from the expected one.
    """
    status_of(root)  # raises if the path is invalid, before an error of writing would
    prepare_output(root)
    missing = [archive for archive in archives if not archive.is_unpacked(root)]
    for archive in archives:
        if archive not in missing:
            log.note(f"{archive.name}: already unpacked")
    _check_disk(missing, root)
    for archive in missing:
        path = root / archive.name
        if not is_file(path):
            _download(archive, path, log)
        log.note(f"{archive.name}: checking and unpacking")
        _verify(archive, path, log)
        _unpack(archive, path, root, log)
        if not archive.is_unpacked(root):
            raise UserError(f"{path}: expected {dict(archive.contents)} in {root}, got less")


def _count(path: Path) -> int:
    """Return 1 for a file, the number of entries for a folder, and 0 if nothing exists."""
    return len(names_in(path)) if is_folder(path) else int(is_file(path))


def _check_disk(archives: Sequence[Archive], root: Path) -> None:
    need = 0
    for archive in archives:
        downloaded = _size(root / archive.name) + _size(_partial(root / archive.name))
        # an archive is kept, so both it and its contents need space
        need += archive.unpacked_size + max(archive.size - downloaded, 0)
    free = shutil.disk_usage(root).free
    if need > free:
        names = ", ".join(archive.name for archive in archives)
        raise UserError(
            f"{root}: expected {need / GB:.1f} GB of free disk for {names}, got {free / GB:.1f} GB"
        )


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _download(archive: Archive, path: Path, log: RunLog) -> None:
    """Download the file to `path`; until it is complete, its name ends in `.partial`."""
    partial = _partial(path)
    previous_size = -1
    # too large: the server did not stop, or it is a file of another version
    if _size(partial) > archive.size:
        partial.unlink()
    # reconnect after a lost connection, as long as each connection adds bytes
    while _size(partial) < archive.size and _size(partial) != previous_size:
        previous_size = _size(partial)
        try:
            _download_rest(archive, partial, log)
        except UserError:  # UserError is a ValueError, so it must not reach the last clause
            raise
        except urllib.error.HTTPError as error:
            error.close()
            raise UserError(f"{archive.url}: download failed: {one_line(error)}") from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            # after progress, try again: the loop resumes with the bytes so far
            if _size(partial) == previous_size:
                raise UserError(f"{archive.url}: download failed: {one_line(error)}") from error
    if _size(partial) < archive.size:
        got = f"{_size(partial)}; run the same command again to resume"
        raise UserError(f"{archive.url}: expected {archive.size} bytes, got {got}")
    partial.rename(path)


def _verify(archive: Archive, path: Path, log: RunLog) -> None:
    """Raise UserError if the file's checksum differs from the expected one."""
    algorithm, expected = archive.checksum.split(":")
    digest = hashlib.new(algorithm)
    with open_file(path) as file:
        for chunk in _with_progress(_chunks(file), _size(path), f"checking {archive.name}", log):
            digest.update(chunk)
    if digest.hexdigest() != expected:
        advice = "delete it to download it again"
        raise UserError(f"{path}: expected {archive.checksum}, got {digest.hexdigest()}; {advice}")


def _size(path: Path) -> int:
    status = status_of(path)
    return status.st_size if status is not None and is_file(path) else 0


def _download_rest(archive: Archive, partial: Path, log: RunLog) -> None:
    """Append the missing bytes; start over if the server ignores the range and sends all bytes.

    Raises:
        UserError: the server sends more bytes than expected, or another range than requested.
    """
    start = _size(partial)
    request = urllib.request.Request(archive.url, headers={"Range": f"bytes={start}-"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        # 206: the server sends the requested range; 200: it sends the whole file
        is_partial = response.status == http.HTTPStatus.PARTIAL_CONTENT
        sent = response.headers.get("Content-Range", f"bytes {start}-")
        if is_partial and not sent.startswith(f"bytes {start}-"):
            raise UserError(f"{archive.url}: expected bytes from {start} on, got {sent!r}")
        # bytes that are still expected
        rest = archive.size - start if is_partial else archive.size
        what = f"downloading {archive.name}"
        with partial.open("ab" if is_partial else "wb") as file:
            for chunk in _with_progress(_chunks(response), rest, what, log):
                if len(chunk) > rest:  # an endless response must not fill the disk
                    raise UserError(f"{archive.url}: expected {archive.size} bytes, got more")
                rest -= len(chunk)
                file.write(chunk)


def _chunks(source: BinaryIO) -> Iterator[bytes]:
    while chunk := source.read(CHUNK_BYTES):
        yield chunk


def _with_progress(chunks: Iterator[bytes], size: int, what: str, log: RunLog) -> Iterator[bytes]:
    """Yield chunks of `size` bytes in total, and show the MB done and the time left."""
    # number of chunks, rounded up; a chunk is 1 MB
    return log.progress(chunks, -(-size // CHUNK_BYTES), f"{what}, MB")


def _unpack(archive: Archive, path: Path, root: Path, log: RunLog) -> None:
    what = f"unpacking {archive.name}, files"
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as packed:
                names = packed.namelist()
                for name in log.progress(names, len(names), what):
                    packed.extract(name, root)
        else:
            with tarfile.open(path) as packed_tar:
                # approximate: the list of a tar file is known only at its end
                count = sum(archive.contents.values())
                for member in log.progress(packed_tar, count, what):
                    # filter "data" refuses paths outside `root`, links and devices
                    packed_tar.extract(member, root, filter="data")
    except (OSError, ValueError, EOFError, zlib.error, tarfile.TarError, *_ZIP_ERRORS) as error:
        raise UserError(f"{path}: cannot be unpacked: {error}") from error
