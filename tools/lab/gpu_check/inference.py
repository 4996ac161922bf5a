"""Stage that times detection in one and in eight images, ours and torchvision's."""

from functools import partial

import torch

from tools.lab.benchmarks import networks
from tools.lab.benchmarks.gpu import float32_products
from tools.lab.benchmarks.peers import peer_prediction
from tools.lab.benchmarks.steps import our_prediction
from tools.lab.gpu_check.record import (
    DEVICE,
    DRY,
    PRECISION,
    SIZE,
    attempt,
    median_ms,
    profile_of,
    save,
)
from tools.lab.gpu_check.steps import case_of


def time_inference() -> None:
    """Time R50-FPN, R101-FPN and R101-C4 against torchvision, in TF32 and like for like."""
    for name in ("r50", "fpn", "c4"):
        for count in (1, 2 if DRY else 8):
            attempt("infer", f"{name}_{count}", partial(_compare, name, count))


def _compare(name: str, count: int) -> None:
    case = case_of(name)
    task = networks.make_task(case)
    task.model.to(DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]
    task.model.eval()
    batch = networks.make_batch(count, size=SIZE).to(DEVICE)
    ours = our_prediction(task, batch, precision=PRECISION)
    theirs_in = partial(peer_prediction, case, task, batch, precision=PRECISION)
    theirs, like_ours = theirs_in("peer as its users run it"), theirs_in("like for like")
    with float32_products(exact=True), torch.inference_mode():
        found, expected = task.predict(batch), theirs()
    numbers = [len(each.boxes) for each in found], [len(each["boxes"]) for each in expected]
    with float32_products(exact=False):
        for warm in (ours, theirs, like_ours):  # one uncounted call each
            warm()
        ms, tf32, fair = (median_ms(each, calls=10) for each in (ours, theirs, like_ours))
    key = f"{name}_batch_{count}"
    values = {
        "ours_ms": ms,
        "ms_an_image": round(ms / count, 2),
        "peer_tf32_ms": tf32,
        "peer_like_ours_ms": fair,
        "ratios": [round(tf32 / ms, 2), round(fair / ms, 2)],
        "objects": numbers,
    }
    save("infer", **{key: values})
    if DEVICE.type == "cuda":
        graphs = our_prediction(task, batch, precision=PRECISION, cuda_graphs=True)
        graphs()  # captures
        save("infer", **{f"{key}_graphs_ms": median_ms(graphs, calls=10)})
    _, busy, kernels = profile_of(ours, f"infer {key}", limit=30)
    save("infer", **{f"{key}_busy_ms": busy, f"{key}_kernels": kernels})
