"""Both sides of the network benchmarks agree, and differences are detected."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from engine.errors import UserError
from engine.precision import chosen_precision
from engine.schema import LoopConfig
from tools.lab.benchmarks import BENCHMARKS
from tools.lab.benchmarks.agreement import check_detections, check_losses
from tools.lab.benchmarks.errors import DisagreementError
from tools.lab.benchmarks.inference import inference
from tools.lab.benchmarks.networks import (
    MASK_R50_FPN,
    R50_FPN,
    R101_C4,
    SMALL_SIZE,
    Case,
    make_batch,
    make_peer,
    make_task,
)
from tools.lab.benchmarks.settings import Settings
from tools.lab.benchmarks.steps import CPU, operations_of, our_step
from tools.lab.benchmarks.training import train

C4 = pytest.param(R101_C4, marks=pytest.mark.slow)  # several seconds in each test


@pytest.mark.extended
@pytest.mark.parametrize(
    "case",
    [pytest.param(R101_C4, marks=pytest.mark.slow), MASK_R50_FPN],
    ids=lambda case: case.name,
)
def test_losses_agree_unless_a_weight_differs(case: Case) -> None:
    case = case.smaller()
    task, batch = make_task(case), make_batch(1, size=SMALL_SIZE, masks=case.masks)
    peer = make_peer(case, task, size=SMALL_SIZE)
    check_losses(task, peer, batch)
    with torch.no_grad():
        peer.roi_heads.box_predictor.cls_score.bias[0] += 0.5
    with pytest.raises(DisagreementError, match="roi_class"):
        check_losses(task, peer, batch)


@pytest.mark.extended
@pytest.mark.parametrize(
    "case", [pytest.param(R101_C4, marks=pytest.mark.slow), R50_FPN], ids=lambda case: case.name
)
def test_detections_agree_unless_a_weight_differs(case: Case) -> None:
    task, batch = make_task(case.smaller()), make_batch(1, size=SMALL_SIZE)
    peer = make_peer(case.smaller(), task, size=SMALL_SIZE).eval()
    task.model.eval()
    assert check_detections(task, peer, batch) > 10
    with torch.no_grad():
        peer.roi_heads.box_predictor.bbox_pred.bias += 0.5
    with pytest.raises(DisagreementError):
        check_detections(task, peer, batch)


@pytest.mark.slow
@pytest.mark.usefixtures("fast_kernels")
def test_operations_of_fused_and_separate_convolutions_are_equal() -> None:
    batch = make_batch(1, size=SMALL_SIZE)
    counts, fused = [], []
    for channels_last in (True, False):  # the backbone's are fused only in the first
        loop = LoopConfig(channels_last=channels_last)
        step = our_step(make_task(R101_C4.smaller()), loop, device=CPU)
        counts.append(operations_of(partial(step, batch)))
        with profile(activities=[ProfilerActivity.CPU], acc_events=True) as record:
            step(batch)
        calls = {each.key: each.count for each in record.key_averages()}
        fused.append(calls.get("mkldnn::_convolution_pointwise", 0))
    assert counts[0] == counts[1] > 0
    assert fused[0] > fused[1] + 20 or not torch.backends.mkldnn.is_available()


@pytest.mark.slow
def test_rows_of_training_and_inference(tmp_path: Path) -> None:
    settings = Settings(tmp_path, log=lambda _: None, rounds=1, small=True, model="r50_fpn")
    # emulated bf16 would take minutes
    precision = chosen_precision(CPU, "auto")
    expected = {"bf16": [1.5, 2.8, 50], "fp32": [None, 1.4, 65]}
    rows = train(replace(settings, precision=precision))
    assert [(row.work, row.unit) for row in rows] == [
        (f"r50_fpn step, {precision}, like for like", "x"),
        (f"r50_fpn step, {precision}, peer as its users run it", "x"),
        (f"r50_fpn share of conv peak, {precision}", "%"),
    ]
    assert [row.promised for row in rows] == expected[precision]
    assert rows[2].value < 100
    rows = inference(replace(settings, precision="fp32"))
    assert [(row.work, row.promised) for row in rows] == [
        ("r50_fpn one image, fp32, like for like", None),
        ("r50_fpn one image, fp32, peer as its users run it", 1.25),
    ]


def test_unknown_models_and_precisions_are_errors(tmp_path: Path) -> None:
    for name, each in BENCHMARKS.items():
        for model in each.models:
            each.check_options(name, model=model, precision=None)
    with pytest.raises(UserError, match=r"^--model: expected one of r101_c4, r50_fpn for in"):
        BENCHMARKS["inference"].check_options("inference", model="r18", precision="bf16")
    with pytest.raises(UserError, match=r"^--model: expected none for nms, got r18"):
        BENCHMARKS["nms"].check_options("nms", model="r18", precision=None)
    with pytest.raises(UserError, match=r"^--precision: expected none for gpu-train, got fp32"):
        BENCHMARKS["gpu-train"].check_options("gpu-train", model=None, precision="fp32")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, each in BENCHMARKS.items() if each.on_gpu])
def test_gpu_benchmarks_run(name: str, tmp_path: Path) -> None:
    precision = torch.get_float32_matmul_precision()
    model = "r101_fpn" if BENCHMARKS[name].models else None
    settings = Settings(
        tmp_path, log=lambda _: None, rounds=1, small=True, model=model, output=tmp_path
    )
    assert all(row.value > 0 for row in BENCHMARKS[name].run(settings))
    assert (tmp_path / "trace_r101_fpn.json").exists() == (name == "gpu-trace")
    assert torch.get_float32_matmul_precision() == precision
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="expected a CUDA device"):
            BENCHMARKS[name].run(replace(settings, small=False))
