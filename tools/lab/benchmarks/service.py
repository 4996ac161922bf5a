"""Benchmark: load test of the service example, docs/examples/service.py.

Clients send images at the same time. Each answer must be what the detector itself predicts.
"""

import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import cv2
import torch

from backbones.config import DemoConfig
from backbones.images import read_image
from detection.commands.schemas import SCHEMAS
from detection.commands.tasks import build_task
from detection.datasets.demo import make_demo
from detection.predict import Detector, load_detector
from engine.checkpoint import write_safetensors
from engine.config import load_config
from engine.paths import names_in, read_bytes, read_text
from tools.lab import REPOSITORY
from tools.lab.benchmarks.errors import DisagreementError
from tools.lab.benchmarks.measure import Row, mean_seconds
from tools.lab.benchmarks.settings import Settings

NUM_REQUESTS, NUM_CLIENTS, NUM_IMAGES = 1000, 8, 24
START_S, ANSWER_S, LIMIT_S = 120, 60, 1800
"""Longest time until the service answers, of one answer, and of all requests, seconds."""
GROWTH_MB = 10
"""Largest growth of the server's memory, from the first fifth of the requests to the last."""


@dataclass(frozen=True)
class Answer:
    """What became of one request.

    objects: the JSON of the answer; None if there was none, or another status than 200.
    problem: why there is none. seconds: until the answer. memory: the server's then, MB.
    """

    image: int
    objects: Any
    problem: str
    seconds: float
    memory: float


def service(settings: Settings) -> list[Row]:
    """Send images of different sizes, JPEG and PNG, to a small detector with random weights."""
    num_requests, num_clients = (40, 4) if settings.small else (NUM_REQUESTS, NUM_CLIENTS)
    weights, paths = write_detector(settings.folder)
    bodies = [read_bytes(path) for path in paths]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the service, so that the results are the same bit for bit
    try:
        detector = load_detector(weights, device="cpu")
        expected = direct_answers(detector, paths)
        with serving(weights, settings.folder) as (process, port):
            row = speed_row(detector, paths[: 8 if settings.small else None], port=port)
            settings.log(f"{num_requests} requests from {num_clients} clients")
            begun = time.perf_counter()
            answers = send_all(
                bodies, port=port, pid=process.pid, requests=num_requests, clients=num_clients
            )
            rate = len(answers) / (time.perf_counter() - begun)
    finally:
        torch.set_num_threads(threads)
    return [*rows_of(answers, expected, num_requests=num_requests, rate=rate), row]


def speed_row(detector: Detector, paths: Sequence[Path], *, port: int) -> Row:
    """Return the row on the time of an answer to one client, next to that of the detector alone."""
    asked, alone = [], []
    for path in paths:
        post = partial(request, port, "POST", "/detect", read_bytes(path))
        asked.append(mean_seconds(post, calls=1))
        alone.append(mean_seconds(partial(detector.predict, [path]), calls=1))
    return Row(
        "speed for one client, relative to the detector in its own process",
        statistics.median(b / a for a, b in zip(asked, alone, strict=True)),
        "x",
        detail=f"in turn: {_median_ms(asked)} against {_median_ms(alone)}",
    )


def _median_ms(seconds: Sequence[float]) -> str:
    return f"{1000 * statistics.median(seconds):.0f} ms"


def rows_of(
    answers: Sequence[Answer], expected: Sequence[Any], *, num_requests: int, rate: float
) -> list[Row]:
    """Return the rows on lost and wrong answers, times and memory.

    Args:
        answers: in the order of the requests.
        expected: objects by image.
        num_requests: how many answers there should be.
        rate: answers a second.
    """
    right = [answer for answer in answers if answer.objects == expected[answer.image]]
    lost = [answer for answer in answers if answer.objects is None]
    milliseconds = sorted(1000 * answer.seconds for answer in answers)
    cuts = statistics.quantiles(milliseconds, n=100)
    fifth = len(answers) // 5
    first, last = (
        statistics.median(answer.memory for answer in part)
        for part in (answers[:fifth], answers[-fifth:])
    )
    within = f"95 % within {cuts[94]:.0f} ms, 99 % within {cuts[98]:.0f} ms"
    wrong = len(answers) - len(lost) - len(right)
    reasons = "; ".join(sorted({answer.problem for answer in lost}))
    return [
        Row(f"right answers to {num_requests} requests", len(right), "", num_requests),
        Row("lost", num_requests - len(answers) + len(lost), "", 0, None, True, reasons),
        Row("wrong", wrong, "", 0, None, True),
        Row(
            "the server's memory, last fifth of the requests minus first fifth",
            last - first,
            "MB",
            GROWTH_MB,
            0,
            smaller_is_better=True,
            detail=f"{first:.0f} MB, then {last:.0f} MB",
        ),
        Row(
            "time of an answer, median",
            cuts[49],
            "ms",
            smaller_is_better=True,
            detail=f"{rate:.1f} a second; {within}",
        ),
    ]


def write_detector(folder: Path) -> tuple[Path, list[Path]]:
    """Write the demo's detector with random weights, and images; return their paths."""
    demo = DemoConfig(root=str(folder / "demo"), num_train=1, num_val=NUM_IMAGES)
    make_demo(demo)
    overrides = [
        f"data.{split}.{key}={folder / 'demo' / place}"
        for split in ("train", "val")
        for key, place in (("images", split), ("annotations", f"annotations/{split}.json"))
    ]
    # random weights give all classes low scores
    overrides += ["data.demo=null", "model.roi.score_thresh=0.0", "loop.precision=fp32"]
    config = load_config(REPOSITORY / "configs/detection/demo.yaml", overrides, schemas=SCHEMAS)
    torch.manual_seed(0)
    task = build_task(config)
    weights = folder / "model.safetensors"
    write_safetensors(weights, task.model.state_dict(), task.metadata())
    images = folder / "demo" / "val"
    paths = [images / name for name in names_in(images)]
    for index in range(0, len(paths), 2):  # every other image is a PNG file
        pixels, paths[index] = read_image(paths[index]), paths[index].with_suffix(".png")
        cv2.imwrite(str(paths[index]), pixels[..., ::-1])
    return weights, paths


def direct_answers(detector: Detector, paths: Sequence[Path]) -> list[Any]:
    """Return what the service should answer for each image.

    Raises:
        DisagreementError: an answer has no objects, or two are equal: a wrong one could be missed.
    """
    found = [detector.predict([path])[0] for path in paths]
    answers = [
        [
            {"class": detector.class_names[label], "score": score, "box": box}
            for label, score, box in zip(
                each.labels.tolist(), each.scores.tolist(), each.boxes.tolist(), strict=True
            )
        ]
        for each in found
    ]
    if not all(answers) or len({json.dumps(each) for each in answers}) < len(answers):
        raise DisagreementError("service: expected other objects in each image, got equal or none")
    return answers


@contextmanager
def serving(weights: Path, folder: Path) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """Start the service on 127.0.0.1 with one thread; yield its process and port, and stop it.

    Its output is in service.log in `folder`.

    Raises:
        RuntimeError: it did not start.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(REPOSITORY / "docs" / "examples")]
    command += ["service:app", "--port", str(port), "--no-access-log"]
    changes = {"RESDET_RUN": str(weights), "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    log = folder / "service.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | changes, stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + START_S
        while request(port, "GET", "/health")[0] != 200:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the service did not start: {read_text(log)[-500:]}")
            time.sleep(0.2)
        yield process, port
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)
        process.kill()
        process.wait()


def request(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
    """Return status and JSON of an answer; 0 and the reason if there is none."""
    connection = HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    except (OSError, HTTPException, ValueError) as error:
        return 0, f"{type(error).__name__}: {error}"
    finally:
        connection.close()


def send_all(
    bodies: Sequence[bytes], *, port: int, pid: int, requests: int, clients: int
) -> list[Answer]:
    """Send images in turn from several threads, for at most LIMIT_S; return the answers in order.

    Args:
        bodies: image files.
        port: of the service.
        pid: of its process, whose memory is read.
        requests: how many to send.
        clients: number of threads, each with one request at a time.
    """
    numbers = itertools.count()
    deadline = time.monotonic() + LIMIT_S

    def client(_: int) -> list[tuple[int, Answer]]:
        done = []
        while (number := next(numbers)) < requests and time.monotonic() < deadline:
            image = number % len(bodies)
            begun = time.perf_counter()
            status, content = request(port, "POST", "/detect", bodies[image])
            seconds = time.perf_counter() - begun
            problem = "" if status == 200 else f"status {status}: {content}"
            objects = content if status == 200 else None
            done.append((number, Answer(image, objects, problem, seconds, memory_mb(pid))))
        return done

    with ThreadPoolExecutor(clients) as pool:
        parts = list(pool.map(client, range(clients)))
    return [answer for _, answer in sorted(itertools.chain(*parts), key=lambda each: each[0])]


def memory_mb(pid: int) -> float:
    """Return the resident set size of a process in MB; 0 if it has ended."""
    with suppress(ValueError, IndexError):  # UserError is a ValueError
        return int(read_text(f"/proc/{pid}/status").split("VmRSS:")[1].split()[0]) / 1024
    return 0.0
