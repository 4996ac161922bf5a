"""Detection service: POST an image to /detect and get its objects as JSON.

RESDET_RUN=runs/demo uvicorn --app-dir docs/examples service:app
"""

import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from starlette.requests import ClientDisconnect

from backbones.images import decode, quiet_opencv
from detection import load_detector
from engine.errors import UserError

MAX_BYTES = 20 * 2**20
"""Size of the largest image file."""
MAX_REQUESTS = 32
"""Requests that are read, wait or are answered at a time; more get status 503."""
READ_S = 30
"""Longest time for the upload of an image, seconds."""

if "RESDET_RUN" not in os.environ:
    sys.exit("RESDET_RUN: expected the path of a run or of a model.safetensors, got none")
quiet_opencv()
try:
    detector = load_detector(os.environ["RESDET_RUN"])
except UserError as error:
    sys.exit(f"RESDET_RUN: {error}")
# One thread decodes and detects, so one decoded image is in memory. More threads would be safe.
thread = ThreadPoolExecutor(max_workers=1)
places = asyncio.Semaphore(MAX_REQUESTS)
app = FastAPI(title="resdet")


@app.get("/health")
async def health() -> dict[str, Any]:
    """Answer as soon as the detector is loaded."""
    return {"status": "ok", "classes": detector.class_names}


@app.post("/detect")
async def detect(request: Request) -> list[dict[str, Any]]:
    """Return the objects in the image that is the body of the request, by falling score."""
    if places.locked():
        raise HTTPException(503, "busy: send the image again later", {"Retry-After": "1"})
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise HTTPException(415, "expected the image as the body, as curl --data-binary sends it")
    async with places:
        try:
            data = await read_body(request)
            return await asyncio.get_running_loop().run_in_executor(thread, objects_in, data)
        except UserError as error:  # not an image, or a damaged one
            raise HTTPException(400, str(error)) from error


async def read_body(request: Request) -> bytes:
    """Return the body of a request, without reading more than MAX_BYTES of it."""
    data = bytearray()
    try:
        async with asyncio.timeout(READ_S):
            async for part in request.stream():
                data += part
                if len(data) > MAX_BYTES:
                    raise HTTPException(413, f"image: expected at most {MAX_BYTES} bytes, got more")
    except (TimeoutError, ClientDisconnect) as error:
        raise HTTPException(408, f"image: expected all of it within {READ_S} s") from error
    return bytes(data)


def objects_in(data: bytes) -> list[dict[str, Any]]:
    """Return class, score and box (x1, y1, x2, y2 in pixels of the image) of each object."""
    found = detector.predict([decode(data, "image")])[0]
    columns = (found.labels.tolist(), found.scores.tolist(), found.boxes.tolist())
    return [
        {"class": detector.class_names[label], "score": score, "box": box}
        for label, score, box in zip(*columns, strict=True)
    ]
