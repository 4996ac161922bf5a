import contextlib
import gc
import hashlib
import http.server
import io
import tarfile
import threading
import warnings
import zipfile
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from detection.datasets.download import DATA_SETS, Archive, download
from engine.errors import UserError
from engine.log import RunLog

CONTENT = {"set/a.bin": np.random.default_rng(0).bytes(2_300_000), "set/b.txt": b"b"}


@dataclass
class Site:
    """What a local server holds, how it behaves, and the ranges that it was asked for."""

    files: dict[str, bytes] = field(default_factory=dict)
    takes_ranges: bool = True
    breaks_off_after: int | None = None
    sends_for_ever: bool = False
    redirects_to: str | None = None
    starts_at: int | None = None
    asked: list[str] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def site() -> Generator[Site]:
    holds = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "bytes=0-")
            holds.asked.append(wanted)
            content = holds.files.get(self.path.strip("/"))
            if holds.redirects_to is not None and "moved" not in self.path:
                self.send_response(302)
                self.send_header("Location", holds.redirects_to)
                self.end_headers()
                return
            if content is None:
                self.send_error(404)
                return
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if holds.takes_ranges else 0
            self.send_response(206 if holds.takes_ranges else 200)
            if holds.starts_at is not None:
                start = holds.starts_at
                whole = f"bytes {start}-{len(content) - 1}/{len(content)}"
                self.send_header("Content-Range", whole)
            if not holds.sends_for_ever:
                self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            rest = content[start:]
            if holds.breaks_off_after is not None:
                rest = rest[: holds.breaks_off_after]
            self.wfile.write(rest)
            with contextlib.suppress(ConnectionError):
                while holds.sends_for_ever:
                    self.wfile.write(bytes(1_000_000))

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    holds.url = f"http://127.0.0.1:{server.server_port}"
    yield holds
    server.shutdown()
    server.server_close()
    thread.join()


def packed(kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in CONTENT.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz" if kind == "tar.gz" else "w") as archive:
            for name, content in CONTENT.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def offered(site: Site, *, kind: str = "zip", algorithm: str = "sha256") -> Archive:
    """Put an archive on the server and describe it."""
    content = packed(kind)
    site.files[f"data.{kind}"] = content
    checksum = f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"
    holds = {"set": 2, "set/b.txt": 1}
    return Archive(f"{site.url}/data.{kind}", checksum, len(content), 2_300_001, holds)


def fetch(archive: Archive, root: Path) -> None:
    download([archive], root, RunLog(None, is_main=True))


def check_unpacked(root: Path) -> None:
    assert {name: (root / name).read_bytes() for name in CONTENT} == CONTENT


@pytest.mark.parametrize(
    ("kind", "algorithm"), [("zip", "sha256"), ("tar", "md5"), ("tar.gz", "md5")], ids=str
)
def test_fetched_once(
    site: Site, tmp_path: Path, kind: str, algorithm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = offered(site, kind=kind, algorithm=algorithm)
    fetch(archive, tmp_path / "new" / "root")
    check_unpacked(tmp_path / "new" / "root")
    assert site.asked == ["bytes=0-"]
    assert f"data.{kind}: checking and unpacking" in capsys.readouterr().out
    (tmp_path / "new" / "root" / f"data.{kind}").unlink()  # what it held is enough
    fetch(archive, tmp_path / "new" / "root")
    assert f"data.{kind}: already there" in capsys.readouterr().out
    assert len(site.asked) == 1


def test_goes_on_where_an_earlier_attempt_broke_off(site: Site, tmp_path: Path) -> None:
    archive = offered(site)
    (tmp_path / "data.zip.partial").write_bytes(site.files["data.zip"][:1_234_567])
    fetch(archive, tmp_path)
    check_unpacked(tmp_path)
    assert site.asked == ["bytes=1234567-"]
    assert not (tmp_path / "data.zip.partial").exists()


def test_a_lost_connection_is_taken_up_again(site: Site, tmp_path: Path) -> None:
    archive = offered(site)
    site.breaks_off_after = 1_000_000
    fetch(archive, tmp_path)
    check_unpacked(tmp_path)
    assert site.asked == ["bytes=0-", "bytes=1000000-", "bytes=2000000-"]


def test_a_server_without_ranges_sends_all_of_it(site: Site, tmp_path: Path) -> None:
    archive = offered(site)
    site.takes_ranges = False
    (tmp_path / "data.zip.partial").write_bytes(b"of an earlier attempt")
    fetch(archive, tmp_path)
    check_unpacked(tmp_path)
    assert len(site.asked) == 1


def test_what_breaks_off_for_ever_is_said_and_kept(site: Site, tmp_path: Path) -> None:
    archive = offered(site)
    site.takes_ranges = False
    site.breaks_off_after = 1_000_000
    with pytest.raises(UserError, match=r"got 1000000; the same command goes on from there"):
        fetch(archive, tmp_path)
    assert (tmp_path / "data.zip.partial").stat().st_size == 1_000_000
    assert not (tmp_path / "set").exists()


def test_an_archive_that_is_there_is_unpacked(site: Site, tmp_path: Path) -> None:
    archive = offered(site)
    (tmp_path / "data.zip").write_bytes(site.files["data.zip"])
    fetch(archive, tmp_path)
    check_unpacked(tmp_path)
    assert site.asked == []


def test_another_content_than_published(site: Site, tmp_path: Path) -> None:
    archive = replace(offered(site), checksum=f"md5:{'0' * 32}")
    with pytest.raises(UserError, match=r"data\.zip: expected md5:0+, got \w+; delete it"):
        fetch(archive, tmp_path)
    assert not (tmp_path / "set").exists()


def test_an_archive_that_lacks_something(site: Site, tmp_path: Path) -> None:
    archive = replace(offered(site), holds={"set": 3})
    with pytest.raises(UserError, match=r"data\.zip: expected \{'set': 3\} in .*, got less"):
        fetch(archive, tmp_path)


def test_what_is_no_archive(site: Site, tmp_path: Path) -> None:
    text = b"<html>moved</html>"
    site.files["data.zip"] = text
    checksum = f"md5:{hashlib.md5(text).hexdigest()}"
    archive = Archive(f"{site.url}/data.zip", checksum, len(text), 1, {"set": 1})
    with pytest.raises(UserError, match=r"data\.zip: cannot be unpacked: .*not a zip file"):
        fetch(archive, tmp_path)


@pytest.mark.parametrize("where", ["nobody listens", "no such file"])
def test_no_way_to_fetch(site: Site, tmp_path: Path, where: str) -> None:
    archive = offered(site)
    url, reason = f"{site.url}/other.zip", "Not Found"
    if where == "nobody listens":
        url, reason = "http://127.0.0.1:1/data.zip", "Connection refused"
    with pytest.raises(UserError, match=f"cannot be fetched: .*{reason}") as error:
        fetch(replace(archive, url=url), tmp_path)
    assert str(error.value).startswith(url)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("earlier", [0, 1_234_567])
def test_a_server_that_sends_for_ever_is_stopped_at_the_expected_size(
    site: Site, tmp_path: Path, earlier: int
) -> None:
    archive = offered(site)
    site.sends_for_ever = True
    (tmp_path / "data.zip.partial").write_bytes(site.files["data.zip"][:earlier])
    with pytest.raises(UserError, match=rf"data\.zip: expected {archive.size} bytes, got more"):
        fetch(archive, tmp_path)
    assert (tmp_path / "data.zip.partial").stat().st_size <= archive.size
    assert not (tmp_path / "set").exists()


def test_an_earlier_attempt_that_is_too_long_starts_again(site: Site, tmp_path: Path) -> None:
    archive = offered(site)
    (tmp_path / "data.zip.partial").write_bytes(bytes(archive.size + 1))
    fetch(archive, tmp_path)
    check_unpacked(tmp_path)
    assert site.asked == ["bytes=0-"]


def test_another_part_than_asked_for(site: Site, tmp_path: Path) -> None:
    archive = offered(site)
    site.starts_at = 7
    (tmp_path / "data.zip.partial").write_bytes(site.files["data.zip"][:1_234_567])
    with pytest.raises(UserError, match=r"expected bytes from 1234567 on, got 'bytes 7-"):
        fetch(archive, tmp_path)


@pytest.mark.parametrize(
    ("to", "reason"),
    [
        ("/moved/data.zip", None),
        ("/data.zip", "redirect"),
        ("file:///etc/hostname", "not allowed"),
        ("http://[bad/moved", "cannot be fetched"),
    ],
    ids=["another place", "for ever", "a local file", "no address"],
)
def test_redirects(site: Site, tmp_path: Path, to: str, reason: str | None) -> None:
    archive = offered(site)
    site.redirects_to = to
    site.files["moved/data.zip"] = site.files["data.zip"]
    if reason is None:
        fetch(archive, tmp_path)
        check_unpacked(tmp_path)
        return
    with pytest.raises(UserError, match=reason) as caught:
        fetch(archive, tmp_path)
    assert str(caught.value).startswith(archive.url)
    assert "\n" not in str(caught.value)
    del caught
    with warnings.catch_warnings():
        # urllib leaves the answer open that redirects to no address
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_progress_is_shown_in_every_part(
    site: Site,
    tmp_path: Path,
    kind: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.log.PLAIN_PROGRESS_S", 0.0)
    fetch(offered(site, kind=kind), tmp_path)
    out = capsys.readouterr().out
    for part in (f"downloading data.{kind}, MB 1/3  eta", f"checking data.{kind}, MB 1/3  eta"):
        assert part in out
    assert f"unpacking data.{kind}, files 1/" in out


def test_a_folder_that_cannot_be(site: Site, tmp_path: Path) -> None:
    for root in (tmp_path / ("x" * 300), Path(f"{tmp_path}/a\0b")):
        with pytest.raises(UserError) as caught:
            fetch(offered(site), root)
        assert "\n" not in str(caught.value)


def test_free_disk_comes_first(site: Site, tmp_path: Path) -> None:
    archive = replace(offered(site), unpacked_size=10**18)
    with pytest.raises(UserError, match=r"expected 1000000000\.0 GB of free disk for data\.zip, "):
        fetch(archive, tmp_path)
    assert site.asked == []


def test_every_data_set_can_be_checked() -> None:
    digits = {"md5": 32, "sha256": 64}
    for archives in DATA_SETS.values():
        for archive in archives:
            algorithm, digest = archive.checksum.split(":")
            assert len(digest) == digits[algorithm]
            assert 0 < archive.size <= archive.unpacked_size
            assert archive.name.endswith((".zip", ".tar", ".tar.gz"))
            assert archive.holds


def test_test_set_of_2007_joins_its_training_set(tmp_path: Path) -> None:
    trainval, test = DATA_SETS["voc2007"]
    folder = tmp_path / "VOCdevkit" / "VOC2007"
    (folder / "JPEGImages").mkdir(parents=True)
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    assert not trainval.is_unpacked(tmp_path)
    for number in range(5_011):
        (folder / "JPEGImages" / f"{number}.jpg").touch()
    (folder / "ImageSets" / "Main" / "trainval.txt").touch()
    assert trainval.is_unpacked(tmp_path)
    (folder / "ImageSets" / "Main" / "test.txt").touch()
    assert not test.is_unpacked(tmp_path)
