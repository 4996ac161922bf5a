"""Training on a GPU: the CPU's numbers; no wait; in bfloat16, compiled, as graphs, resumed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from backbones.prediction import prepare_for_prediction
from detection.inference.graphed import GraphedDetector
from detection.inference.pipeline import InferencePipeline
from detection.tasks.detection import DetectionTask
from engine.checkpoint import read_safetensors
from engine.cuda_graph import captured
from engine.distributed import process_group
from engine.precision import autocast
from engine.schema import LoopConfig
from engine.trainer import fit
from tests.detection.tasks.tiny import NECKS, make_step, tiny_config, tiny_task

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
KINDS = ("detection", "segmentation")
LOOPS: dict[str, dict[str, Any]] = {
    "eager": {},
    "compiled": {"compile": True},
    "as CUDA graphs": {"compile": True, "compile_mode": "reduce-overhead"},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.mark.parametrize("kind", KINDS)
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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("neck", NECKS)
def test_a_training_step_waits_for_nothing(root: Path, neck: str, kind: str) -> None:
    task, batch = tiny_task(root, neck, task=kind)
    with process_group("cuda", timeout_s=60) as world:
        task.model.to(CUDA)
        step = make_step(task, batch.to(CUDA), world)
        for number in range(2):  # the first calls initialise libraries and compile the kernel
            step(number)
        torch.cuda.set_sync_debug_mode("error")
        try:
            status = step(2)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert status.tolist() == [False, False]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("neck", NECKS)
def test_forward_and_backward_replay_as_a_cuda_graph(root: Path, neck: str, kind: str) -> None:
    task, batch = tiny_task(root, neck, task=kind)
    task.model.to(CUDA)
    static = batch.to(CUDA)
    parameters = [p for p in task.model.parameters() if p.requires_grad]

    def losses_and_gradients() -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        losses = task.losses(static)
        return losses, torch.autograd.grad(torch.stack(list(losses.values())).sum(), parameters)

    graph, replayed = captured(losses_and_gradients, device=CUDA)
    static.images.pixels.copy_(255 - batch.images.pixels)
    static.images.seeds.copy_(batch.images.seeds + 1)
    graph.replay()
    torch.testing.assert_close(replayed, losses_and_gradients(), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize("neck", NECKS)
def test_bf16_run_resumes(root: Path, tmp_path: Path, neck: str, loop: dict[str, Any]) -> None:
    def run(steps: int, *, resume: bool) -> None:
        changes = {"precision": "bf16", "max_steps": steps, **loop}
        config = tiny_config(root, neck=neck, loop=changes)
        task = DetectionTask.for_training(config)
        fit(task, config, output=tmp_path / "run", resume=resume, device="cuda")

    run(2, resume=False)
    run(4, resume=True)
    weights, _ = read_safetensors(tmp_path / "run" / "model.safetensors")
    assert all(value.isfinite().all() for value in weights.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("neck", NECKS)
def test_graphs_predict_what_the_network_does(root: Path, neck: str, kind: str) -> None:
    task, batch = tiny_task(root, neck, task=kind)
    model = task.model.eval()
    prepare_for_prediction(model, LoopConfig(precision="bf16"), device=CUDA)
    graphs = GraphedDetector(InferencePipeline([model], task.config), device=CUDA)
    images = batch.images.to(CUDA)
    darker = replace(images, pixels=images.pixels // 2)
    wider = replace(images, pixels=torch.nn.functional.pad(images.pixels, (0, 32)))
    with torch.inference_mode(), autocast(CUDA, "bf16"):
        for each in (images, darker, wider, images):  # the second and the last replay
            for found, expected in zip(graphs.predict([each]), model.predict(each), strict=True):
                assert len(expected) > 0
                torch.testing.assert_close(found.scores, expected.scores, rtol=1e-2, atol=1e-3)
                torch.testing.assert_close(found.boxes, expected.boxes, rtol=1e-2, atol=0.5)
                assert (found.labels == expected.labels).float().mean() > 0.9
                if kind == "segmentation":
                    assert found.masks is not None
                    assert expected.masks is not None
                    pairs = zip(found.masks, expected.masks, strict=True)
                    assert min((ours == theirs).mean() for ours, theirs in pairs) > 0.98
