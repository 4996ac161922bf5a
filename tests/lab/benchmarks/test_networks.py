"""Both sides of the network benchmarks agree, and a difference is noticed."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from engine.errors import DisagreementError, UserError
from engine.precision import chosen_precision
from engine.schema import LoopConfig
from tools.lab.benchmarks import BENCHMARKS
from tools.lab.benchmarks.agreement import check_detections, check_losses
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


@pytest.mark.parametrize("case", [R101_C4, MASK_R50_FPN], ids=lambda case: case.name)
def test_losses_agree_until_a_weight_differs(case: Case) -> None:
    case = case.smaller()
    task, batch = make_task(case), make_batch(1, size=SMALL_SIZE, masks=case.masks)
    peer = make_peer(case, task, size=SMALL_SIZE)
    check_losses(task, peer, batch)
    with torch.no_grad():
        peer.roi_heads.box_predictor.cls_score.bias[0] += 0.5
    with pytest.raises(DisagreementError, match="roi_class"):
        check_losses(task, peer, batch)


@pytest.mark.parametrize("case", [R101_C4, R50_FPN], ids=lambda case: case.name)
def test_detections_agree_until_a_weight_differs(case: Case) -> None:
    task, batch = make_task(case.smaller()), make_batch(1, size=SMALL_SIZE)
    peer = make_peer(case.smaller(), task, size=SMALL_SIZE).eval()
    task.model.eval()
    assert check_detections(task, peer, batch) > 10
    with torch.no_grad():
        peer.roi_heads.box_predictor.bbox_pred.bias += 0.5
    with pytest.raises(DisagreementError):
        check_detections(task, peer, batch)


@pytest.mark.usefixtures("fast_kernels")
def test_operations_are_the_same_whether_convolutions_are_fused_or_not() -> None:
    batch = make_batch(1, size=SMALL_SIZE)
    counts, fused = [], []
    for channels_last in (True, False):  # the backbone's convolutions are fused in the first alone
        loop = LoopConfig(channels_last=channels_last)
        step = our_step(make_task(R101_C4.smaller()), loop, device=CPU)
        counts.append(operations_of(partial(step, batch)))
        with profile(activities=[ProfilerActivity.CPU], acc_events=True) as record:
            step(batch)
        calls = {each.key: each.count for each in record.key_averages()}
        fused.append(calls.get("mkldnn::_convolution_pointwise", 0))
    assert counts[0] == counts[1] > 0
    assert fused[0] > fused[1] + 20 or not torch.backends.mkldnn.is_available()


def test_rows(tmp_path: Path) -> None:
    told = Settings(tmp_path, say=lambda _: None, rounds=1, small=True, model="r50_fpn")
    # where bf16 is emulated this would take minutes
    precision = chosen_precision(CPU, "auto")
    expected = {"bf16": [("x", 2.8), ("%", 50)], "fp32": [("x", 1.4), ("%", 65)]}
    rows = train(replace(told, precision=precision))
    assert [(row.unit, row.promised) for row in rows] == expected[precision]
    rows += inference(replace(told, precision="fp32"))
    assert rows[2].promised == 1.25
    assert rows[1].value < 100


def test_models_are_those_that_are_measured(tmp_path: Path) -> None:
    for name, each in BENCHMARKS.items():
        for model in each.models:
            each.check(name, model=model, precision=None)
    with pytest.raises(UserError, match=r"^--model: expected one of r101_c4, r50_fpn for in"):
        BENCHMARKS["inference"].check("inference", model="r18", precision="bf16")
    with pytest.raises(UserError, match=r"^--model: expected none for nms, got r18"):
        BENCHMARKS["nms"].check("nms", model="r18", precision=None)
    with pytest.raises(UserError, match=r"^--precision: expected none for gpu-train, got fp32"):
        BENCHMARKS["gpu-train"].check("gpu-train", model=None, precision="fp32")


@pytest.mark.parametrize("name", [name for name, each in BENCHMARKS.items() if each.on_gpu])
def test_gpu_benchmarks_run(name: str, tmp_path: Path) -> None:
    precision = torch.get_float32_matmul_precision()
    model = "r101_fpn" if BENCHMARKS[name].models else None
    told = Settings(
        tmp_path, say=lambda _: None, rounds=1, small=True, model=model, output=tmp_path
    )
    assert all(row.value > 0 for row in BENCHMARKS[name].run(told))
    assert (tmp_path / "trace_r101_fpn.json").exists() == (name == "gpu-trace")
    assert torch.get_float32_matmul_precision() == precision
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="expected a CUDA device"):
            BENCHMARKS[name].run(replace(told, small=False))
