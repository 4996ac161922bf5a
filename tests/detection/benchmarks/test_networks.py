"""Both sides of the network benchmarks agree, and a difference is noticed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from detection.benchmarks import Benchmark
from detection.benchmarks.agreement import check_detections, check_losses
from detection.benchmarks.gpu import gpu_classify, gpu_inference, gpu_trace, gpu_train
from detection.benchmarks.inference import inference
from detection.benchmarks.networks import (
    MASK_R50_FPN,
    R50_FPN,
    R101_C4,
    SMALL_SIZE,
    Case,
    make_batch,
    make_peer,
    make_task,
)
from detection.benchmarks.settings import Settings
from detection.benchmarks.training import train
from engine.errors import DisagreementError, UserError


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


def test_rows(tmp_path: Path) -> None:
    told = Settings(tmp_path, say=lambda _: None, rounds=1, small=True, model="r50_fpn")
    rows = train(replace(told, precision="bf16"))
    rows += inference(replace(told, precision="fp32"))
    assert [(row.unit, row.at_least) for row in rows] == [("x", 2.8), ("%", 50), ("x", 1.25)]
    assert all(row.value > 0 for row in rows)


def test_an_unknown_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--model: expected one of r101_c4, r50_fpn, got r18"):
        inference(Settings(tmp_path, say=lambda _: None, model="r18"))


@pytest.mark.parametrize(
    "benchmark", [gpu_train, gpu_inference, gpu_classify, gpu_trace], ids=lambda b: b.__name__
)
def test_gpu_benchmarks_run(benchmark: Benchmark, tmp_path: Path) -> None:
    told = Settings(tmp_path, say=lambda _: None, rounds=1, small=True, model="r101_fpn")
    assert all(row.value > 0 for row in benchmark(told))
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="expected a CUDA device"):
            benchmark(replace(told, small=False))
