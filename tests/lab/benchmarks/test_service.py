"""The service example under load, and its answers to what is no image."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import torch

from detection.predict import load_detector
from tools.lab.benchmarks.service import (
    Answer,
    direct_answers,
    request,
    rows_of,
    service,
    serving,
    write_detector,
)
from tools.lab.benchmarks.settings import Settings

pytest.importorskip("fastapi", reason="the service example needs fastapi")
pytest.importorskip("uvicorn", reason="the service example needs uvicorn")

MAX_BYTES, MAX_REQUESTS = 20 * 2**20, 32  # of the example


@dataclass(frozen=True)
class Service:
    port: int
    paths: list[Path]
    weights: Path
    log: Path


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A running service with a small detector, and images."""
    folder = tmp_path_factory.mktemp("service")
    weights, paths = write_detector(folder)
    with serving(weights, folder) as (_, port):
        yield Service(port, paths[:5], weights, folder / "service.log")


def post(running: Service, body: bytes) -> tuple[int, Any]:
    return request(running.port, "POST", "/detect", body)


@pytest.mark.extended
def test_threads_get_the_objects_of_their_images(running: Service) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the service: the results are equal bit for bit
    expected = direct_answers(load_detector(running.weights, device="cpu"), running.paths)
    torch.set_num_threads(threads)
    bodies = [path.read_bytes() for path in running.paths]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda body: post(running, body), bodies * 4))
    assert answers == [(200, objects) for objects in expected] * 4


@pytest.mark.extended
@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        (lambda _: b"", 400, "image: expected a whole image, got a file that cannot be decoded"),
        (lambda _: b"hello", 400, "image: expected a whole image, got a file that cannot be"),
        (lambda jpeg: jpeg[:-100], 400, "image: expected a whole JPEG file, got one whose end is"),
        (lambda _: bytes(MAX_BYTES + 1), 413, f"image: expected at most {MAX_BYTES} bytes, got"),
    ],
    ids=["empty", "text", "cut", "too large"],
)
def test_what_is_no_image_gets_one_line(
    running: Service, change: Any, status: int, reason: str
) -> None:
    jpeg = next(path for path in running.paths if path.suffix == ".jpg").read_bytes()
    got, content = post(running, change(jpeg))
    assert (got, content["detail"].startswith(reason)) == (status, True), content
    assert "\n" not in content["detail"]
    assert post(running, jpeg)[0] == 200


@pytest.mark.extended
def test_a_form_is_refused(running: Service) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    form = Request(f"http://127.0.0.1:{running.port}/detect", b"--x--", headers)
    with pytest.raises(HTTPError, match="415"):
        urlopen(form, timeout=30)


@pytest.mark.extended
def test_service_that_is_full_says_so_and_recovers(running: Service) -> None:
    body = running.paths[0].read_bytes()
    with ExitStack() as stack:
        for _ in range(MAX_REQUESTS):  # uploads that have begun
            address = ("127.0.0.1", running.port)
            upload = stack.enter_context(socket.create_connection(address))
            upload.sendall(b"POST /detect HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\nx")
        deadline = time.monotonic() + 20
        while (answer := post(running, body))[0] == 200:
            assert time.monotonic() < deadline
        assert answer == (503, {"detail": "busy: send the image again later"})
        assert request(running.port, "GET", "/health")[0] == 200
    while post(running, body)[0] != 200:
        assert time.monotonic() < deadline
    assert "Traceback" not in running.log.read_text()


@pytest.mark.extended
def test_run_that_is_missing_is_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match=r"did not start: RESDET_RUN: .*no such"),
        serving(tmp_path / "none", tmp_path),
    ):
        pass


@pytest.mark.slow
def test_load_test(tmp_path: Path) -> None:
    rows = service(Settings(folder=tmp_path, log=print, small=True))
    assert [row.value for row in rows[:3]] == [40, 0, 0]
    assert all(row.value > 0 for row in rows[4:])


def test_lost_and_wrong_answers_are_counted() -> None:
    answers = [
        Answer(number % 2, [number % 2], "", 0.01 * number, 100.0 + number) for number in range(10)
    ]
    answers[3] = Answer(1, [0], "", 0.01, 100.0)
    answers[4] = Answer(0, None, "status 503: busy", 0.01, 100.0)
    rows = rows_of(answers, [[0], [1]], num_requests=11, rate=1.0)
    assert [row.value for row in rows[:4]] == [8, 2, 1, 8.0]
    assert rows[1].detail == "status 503: busy"
    assert [row.holds for row in rows[:4]] == [False, False, False, True]
