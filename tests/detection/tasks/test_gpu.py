"""Training on a GPU: the same numbers as on a CPU, in bfloat16, compiled, resumed."""

from pathlib import Path

import pytest
import torch

from detection.losses import rpn_loss
from detection.tasks.detection import DetectionTask
from engine.checkpoint import read_safetensors
from engine.trainer import fit
from tests.detection.tasks.tiny import NECKS, tiny_config, tiny_task

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.mark.parametrize("kind", ["detection", "segmentation"])
@pytest.mark.parametrize("neck", NECKS)
def test_losses_are_the_cpus(
    root: Path, neck: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    task, batch = tiny_task(root, neck, task=kind)
    expected = task.losses(batch)
    task.model.to(CUDA)
    found = {name: value.cpu() for name, value in task.losses(batch.to(CUDA)).items()}
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("neck", NECKS)
def test_nothing_but_nms_waits_for_the_device(root: Path, neck: str) -> None:
    task, batch = tiny_task(root, neck)
    task.model.to(CUDA)
    batch = batch.to(CUDA)
    features = task.model.features(batch.images)  # the first call may initialise libraries
    rpn = task.model.rpn(features, batch.images)
    proposals = task.model.proposals(rpn, batch.images.sizes, training=True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        features = task.model.features(batch.images)
        rpn = task.model.rpn(features, batch.images)
        anchors = task.sample_anchors(rpn, batch)
        logits, deltas = rpn.objectness_logits, rpn.deltas
        targets = (anchors.target_deltas, anchors.idxs, anchors.is_fg, anchors.valid)
        losses = rpn_loss(logits, deltas, *targets, beta=0.0)
        rois = task.sample_rois(proposals, batch)
        class_logits, _ = task.model.roi_head(features, rois.boxes)
        (torch.stack(list(losses.values())).sum() + class_logits.sum()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("compile_losses", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("neck", NECKS)
def test_bf16_run_resumes(root: Path, tmp_path: Path, neck: str, compile_losses: bool) -> None:
    def run(steps: int, *, resume: bool) -> None:
        loop = {"precision": "bf16", "compile": compile_losses, "max_steps": steps}
        config = tiny_config(root, neck=neck, loop=loop)
        task = DetectionTask.for_training(config)
        fit(task, config, output=tmp_path / "run", resume=resume, device="cuda")

    run(2, resume=False)
    run(4, resume=True)
    weights, _ = read_safetensors(tmp_path / "run" / "model.safetensors")
    assert all(value.isfinite().all() for value in weights.values())
