"""Download of data sets from a local server: resuming, checks, unpacking, error messages."""

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
    """The files of a local server, its behaviour, and the ranges requested so far."""

    files: dict[str, bytes] = field(default_factory=dict)
    supports_ranges: bool = True
    disconnects_after: int | None = None
    sends_endlessly: bool = False
    redirects_to: str | None = None
    starts_at: int | None = None
    requested: list[str] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def site() -> Generator[Site]:
    served = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            byte_range = self.headers.get("Range", "bytes=0-")
            served.requested.append(byte_range)
            content = served.files.get(self.path.strip("/"))
            if served.redirects_to is not None and "moved" not in self.path:
                self.send_response(302)
                self.send_header("Location", served.redirects_to)
                self.end_headers()
                return
            if content is None:
                self.send_error(404)
                return
            start = int(byte_range[len("bytes=") :].rstrip("-")) if served.supports_ranges else 0
            self.send_response(206 if served.supports_ranges else 200)
            if served.starts_at is not None:
                start = served.starts_at
                whole = f"bytes {start}-{len(content) - 1}/{len(content)}"
                self.send_header("Content-Range", whole)
            if not served.sends_endlessly:
                self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            rest = content[start:]
            if served.disconnects_after is not None:
                rest = rest[: served.disconnects_after]
            self.wfile.write(rest)
            with contextlib.suppress(ConnectionError):
                while served.sends_endlessly:
                    self.wfile.write(bytes(1_000_000))

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}"
    yield served
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
    """Put an archive on the server; return its description."""
    content = packed(kind)
    site.files[f"data.{kind}"] = content
    checksum = f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"
    contents = {"set": 2, "set/b.txt": 1}
    return Archive(f"{site.url}/data.{kind}", checksum, len(content), 2_300_001, contents)


def download_one(archive: Archive, root: Path) -> None:
    download([archive], root, RunLog(None, is_main=True))


def check_unpacked(root: Path) -> None:
    assert {name: (root / name).read_bytes() for name in CONTENT} == CONTENT


@pytest.mark.parametrize(
    ("kind", "algorithm"), [("zip", "sha256"), ("tar", "md5"), ("tar.gz", "md5")], ids=str
)
def test_downloaded_once(
    site: Site, tmp_path: Path, kind: str, algorithm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = offered(site, kind=kind, algorithm=algorithm)
    download_one(archive, tmp_path / "new" / "root")
    check_unpacked(tmp_path / "new" / "root")
    assert site.requested == ["bytes=0-"]
    assert f"data.{kind}: checking and unpacking" in capsys.readouterr().out
    (tmp_path / "new" / "root" / f"data.{kind}").unlink()  # its contents are enough
    download_one(archive, tmp_path / "new" / "root")
    assert f"data.{kind}: already unpacked" in capsys.readouterr().out
    assert len(site.requested) == 1


def test_interrupted_download_is_resumed(site: Site, tmp_path: Path) -> None:
    archive = offered(site)
    (tmp_path / "data.zip.partial").write_bytes(site.files["data.zip"][:1_234_567])
    download_one(archive, tmp_path)
    check_unpacked(tmp_path)
    assert site.requested == ["bytes=1234567-"]
    assert not (tmp_path / "data.zip.partial").exists()


def test_lost_connection_is_reopened(site: Site, tmp_path: Path) -> None:
    archive = offered(site)
    site.disconnects_after = 1_000_000
    download_one(archive, tmp_path)
    check_unpacked(tmp_path)
    assert site.requested == ["bytes=0-", "bytes=1000000-", "bytes=2000000-"]


def test_server_without_ranges_sends_the_whole_file(site: Site, tmp_path: Path) -> None:
    archive = offered(site)
    site.supports_ranges = False
    (tmp_path / "data.zip.partial").write_bytes(b"interrupted download")
    download_one(archive, tmp_path)
    check_unpacked(tmp_path)
    assert len(site.requested) == 1


def test_partial_file_is_kept_if_the_server_always_disconnects(site: Site, tmp_path: Path) -> None:
    archive = offered(site)
    site.supports_ranges = False
    site.disconnects_after = 1_000_000
    with pytest.raises(UserError, match=r"got 1000000; run the same command again to resume"):
        download_one(archive, tmp_path)
    assert (tmp_path / "data.zip.partial").stat().st_size == 1_000_000
    assert not (tmp_path / "set").exists()


def test_existing_archive_is_unpacked(site: Site, tmp_path: Path) -> None:
    archive = offered(site)
    (tmp_path / "data.zip").write_bytes(site.files["data.zip"])
    download_one(archive, tmp_path)
    check_unpacked(tmp_path)
    assert site.requested == []


def test_wrong_checksum_is_refused(site: Site, tmp_path: Path) -> None:
    archive = replace(offered(site), checksum=f"md5:{'0' * 32}")
    with pytest.raises(UserError, match=r"data\.zip: expected md5:0+, got \w+; delete it"):
        download_one(archive, tmp_path)
    assert not (tmp_path / "set").exists()


def test_archive_with_missing_files_is_refused(site: Site, tmp_path: Path) -> None:
    archive = replace(offered(site), contents={"set": 3})
    with pytest.raises(UserError, match=r"data\.zip: expected \{'set': 3\} in .*, got less"):
        download_one(archive, tmp_path)


def test_file_that_is_not_an_archive_is_refused(site: Site, tmp_path: Path) -> None:
    text = b"<html>moved</html>"
    site.files["data.zip"] = text
    checksum = f"md5:{hashlib.md5(text).hexdigest()}"
    archive = Archive(f"{site.url}/data.zip", checksum, len(text), 1, {"set": 1})
    with pytest.raises(UserError, match=r"data\.zip: cannot be unpacked: .*not a zip file"):
        download_one(archive, tmp_path)


@pytest.mark.parametrize("where", ["no server", "no such file"])
def test_failed_download_is_reported(site: Site, tmp_path: Path, where: str) -> None:
    archive = offered(site)
    url, reason = f"{site.url}/other.zip", "Not Found"
    if where == "no server":
        url, reason = "http://127.0.0.1:1/data.zip", "Connection refused"
    with pytest.raises(UserError, match=f"download failed: .*{reason}") as error:
        download_one(replace(archive, url=url), tmp_path)
    assert str(error.value).startswith(url)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("earlier", [0, 1_234_567])
def test_endless_response_is_stopped_at_the_expected_size(
    site: Site, tmp_path: Path, earlier: int
) -> None:
    archive = offered(site)
    site.sends_endlessly = True
    (tmp_path / "data.zip.partial").write_bytes(site.files["data.zip"][:earlier])
    with pytest.raises(UserError, match=rf"data\.zip: expected {archive.size} bytes, got more"):
        download_one(archive, tmp_path)
    assert (tmp_path / "data.zip.partial").stat().st_size <= archive.size
    assert not (tmp_path / "set").exists()


def test_partial_file_that_is_too_large_is_downloaded_again(site: Site, tmp_path: Path) -> None:
    archive = offered(site)
    (tmp_path / "data.zip.partial").write_bytes(bytes(archive.size + 1))
    download_one(archive, tmp_path)
    check_unpacked(tmp_path)
    assert site.requested == ["bytes=0-"]


def test_wrong_range_is_refused(site: Site, tmp_path: Path) -> None:
    archive = offered(site)
    site.starts_at = 7
    (tmp_path / "data.zip.partial").write_bytes(site.files["data.zip"][:1_234_567])
    with pytest.raises(UserError, match=r"expected bytes from 1234567 on, got 'bytes 7-"):
        download_one(archive, tmp_path)


@pytest.mark.parametrize(
    ("to", "reason"),
    [
        ("/moved/data.zip", None),
        ("/data.zip", "redirect"),
        ("file:///etc/hostname", "not allowed"),
        ("http://[bad/moved", "download failed"),
    ],
    ids=["another path", "endless", "local file", "invalid URL"],
)
def test_redirects(site: Site, tmp_path: Path, to: str, reason: str | None) -> None:
    archive = offered(site)
    site.redirects_to = to
    site.files["moved/data.zip"] = site.files["data.zip"]
    if reason is None:
        download_one(archive, tmp_path)
        check_unpacked(tmp_path)
        return
    with pytest.raises(UserError, match=reason) as caught:
        download_one(archive, tmp_path)
    assert str(caught.value).startswith(archive.url)
    assert "\n" not in str(caught.value)
    del caught
    with warnings.catch_warnings():
        # urllib does not close a response that redirects to an invalid URL
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_progress_is_shown_in_every_phase(
    site: Site,
    tmp_path: Path,
    kind: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.log.PLAIN_PROGRESS_S", 0.0)
    download_one(offered(site, kind=kind), tmp_path)
    out = capsys.readouterr().out
    for part in (f"downloading data.{kind}, MB 1/3  eta", f"checking data.{kind}, MB 1/3  eta"):
        assert part in out
    assert f"unpacking data.{kind}, files 1/" in out


def test_invalid_root_is_a_user_error(site: Site, tmp_path: Path) -> None:
    for root in (tmp_path / ("x" * 300), Path(f"{tmp_path}/a\0b")):
        with pytest.raises(UserError) as caught:
            download_one(offered(site), root)
        assert "\n" not in str(caught.value)


def test_free_disk_is_checked_first(site: Site, tmp_path: Path) -> None:
    archive = replace(offered(site), unpacked_size=10**18)
    with pytest.raises(UserError, match=r"expected 1000000000\.0 GB of free disk for data\.zip, "):
        download_one(archive, tmp_path)
    assert site.requested == []


def test_every_archive_has_a_valid_checksum_and_sizes() -> None:
    digits = {"md5": 32, "sha256": 64}
    for archives in DATA_SETS.values():
        for archive in archives:
            algorithm, digest = archive.checksum.split(":")
            assert len(digest) == digits[algorithm]
            assert 0 < archive.size <= archive.unpacked_size
            assert archive.name.endswith((".zip", ".tar", ".tar.gz"))
            assert archive.contents


def test_voc_2007_test_set_shares_the_folders_of_trainval(tmp_path: Path) -> None:
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
