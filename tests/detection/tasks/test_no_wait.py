"""A training step asks nothing whose answer lies on the device, and compiles as a whole.

Seen from the CPU: which operators a step calls, and, by tensors that have shapes and a device but
no values, what a CUDA device would refuse. `test_gpu.py` has CUDA itself watch.
"""

import copy
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from backbones.classification.task import ClassificationTask, build_classifier
from backbones.norm import FrozenBatchNorm2d, NormKind, make_norm
from backbones.prediction import prepare_for_prediction
from detection.commands.tasks import build_task
from detection.ops.nms import nms_operator
from detection.structures import DetectionBatch
from detection.tasks.detection import DetectionTask
from engine.distributed import process_group
from engine.schema import LoopConfig
from engine.step import move_task
from tests.backbones.classification import tiny as classification
from tests.backbones.classification.tiny import write_folder
from tests.detection.localization.tiny_localizer import (
    regions_config,
    tiny_config,
    train_first_stage,
    write_tiny_imagenet,
)
from tests.detection.tasks.tiny import NECKS, TODAYS, make_step, tiny_task
from tests.fake_device import (
    TO_THE_HOST,
    WaitSpotter,
    fake_cuda,
    move_to_fake_device,
    to_fake_device,
    with_cuda_types,
)

KINDS = ("detection", "segmentation")
BF16 = LoopConfig(precision="bf16")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.mark.extended
@pytest.mark.parametrize(
    ("kind", "neck", "changes"),
    [
        *((kind, "fpn", {}) for kind in KINDS),
        *(pytest.param(kind, "c4", {}, marks=pytest.mark.slow) for kind in KINDS),
        pytest.param("segmentation", "fpn", {"model": TODAYS}, id="today's heads"),
    ],
)
def test_a_training_step_calls_nothing_that_waits(
    root: Path, kind: str, neck: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in a compiled graph and on a device: on a CPU both are free to look at values.
    monkeypatch.setattr("detection.models.proposals.nms_keep", nms_operator)
    monkeypatch.setattr("detection.tasks.segmentation.most_foreground", lambda _, limit: limit)
    task, batch = tiny_task(root, neck, task=kind, **changes)
    with process_group("cpu", timeout_s=60) as world:
        step = make_step(task, batch, world)
        with WaitSpotter() as spotter:
            step(0)
    assert spotter.found == []
    assert spotter.calls.total() > 1000


def make_case(root: Path, kind: str, neck: str = "fpn") -> tuple[Any, Any]:
    """Return a task and a training batch."""
    if kind in KINDS:
        return tiny_task(root, neck, task=kind)
    if kind.startswith("class"):
        config = classification.tiny_config(write_folder(root))
        task: Any = ClassificationTask.for_training(config)
        if kind == "classification ensemble":
            others = [build_classifier(config, num_classes=2) for _ in range(2)]
            task = ClassificationTask(config, task.model, task.class_names, ensemble=others)
    elif kind == "localization":
        task = build_task(tiny_config(write_tiny_imagenet(root)))
    else:
        task = build_task(regions_config(train_first_stage(root)))
    data: Any = task.train_data()
    return task, data.collate([data.load(index, index) for index in range(4)])


@pytest.fixture
def fake_kernels(monkeypatch: pytest.MonkeyPatch, fast_kernels: None) -> None:
    """Replace what needs values or a GPU; torchvision's suppression waits, so kernels are fast."""

    def keep(boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, **_: Any) -> Tensor:
        return torch.empty_like(valid)

    monkeypatch.setattr("detection.ops.nms.find_kernel", lambda _: keep)


def on_fake_device(task: Any, batch: Any) -> Any:
    """Move all networks of a task, and return the batch."""
    for model in (task, *getattr(task, "_first", ())):
        move_to_fake_device(model)
    return to_fake_device(batch)


@pytest.mark.extended
@with_cuda_types
@pytest.mark.usefixtures("fake_kernels")
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("kind", "neck"),
    [
        *product(KINDS, NECKS),
        ("classification", ""),
        ("localization", ""),
        ("localization_regions", ""),
    ],
)
def test_losses_need_nothing_from_the_host(
    tmp_path: Path, kind: str, neck: str, bf16: bool
) -> None:
    task, batch = make_case(tmp_path, kind, neck)
    with fake_cuda(bf16=bf16):
        batch = on_fake_device(task, batch)
        with WaitSpotter() as spotter:
            losses = task.losses(batch)
    assert spotter.found == []
    assert {(value.device.type, value.shape) for value in losses.values()} == {("cuda", ())}


PREDICTIONS = {
    "classification": ["probabilities"],
    "classification ensemble": ["probabilities"],
    "localization": ["boxes", "scores", "classes"],
    "localization_regions": ["boxes", "scores", "classes"],
}
"""What a prediction copies to the host."""


@pytest.mark.extended
@with_cuda_types
@pytest.mark.usefixtures("fake_kernels")
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_a_prediction_asks_for_its_result_alone(tmp_path: Path, kind: str) -> None:
    task, batch = make_case(tmp_path, kind)
    task.eval()
    with fake_cuda(bf16=True):
        batch = on_fake_device(task, batch)
        with WaitSpotter() as spotter:
            assert len(task.predict(batch)) == len(batch)
    assert spotter.found == [TO_THE_HOST] * len(PREDICTIONS[kind])


def check_first_request(task: DetectionTask, batch: DetectionBatch, kind: str) -> None:
    """Check the first value that `predict` asks the device for.

    It is the number of masks, or the sizes of all detections at once.
    """
    with WaitSpotter() as spotter, pytest.raises(DataDependentOutputException):
        task.predict(batch)
    before = [] if kind == "segmentation" else [TO_THE_HOST]
    assert spotter.found == [*before, "_local_scalar_dense"]


@pytest.mark.extended
@with_cuda_types
@pytest.mark.usefixtures("fake_kernels")
@pytest.mark.parametrize("prepared", [False, True], ids=["as trained", "prepared"])
@pytest.mark.parametrize(("kind", "neck"), [*product(KINDS, NECKS)])
def test_a_detector_asks_for_its_detections_alone(
    tmp_path: Path, kind: str, neck: str, prepared: bool
) -> None:
    task, batch = make_case(tmp_path, kind, neck)
    task.eval()
    if prepared:
        prepare_for_prediction(task.model, BF16, device=torch.device("cpu"))
    with fake_cuda(bf16=True), torch.no_grad():
        batch = on_fake_device(task, batch)
        with WaitSpotter() as spotter:
            found, masks = task.model.select(batch.images, all_masks=True)
        assert spotter.found == []
        assert found.boxes.is_cuda
        assert (masks is not None) == (kind == "segmentation")
        check_first_request(task, batch, kind)


ADDITIONS: dict[str, dict[str, Any]] = {
    "maxout": {"scales": [64, 96, 128], "refine_boxes": True},
    "union": {"scales": [64, 128], "merge": "union", "mirror": True, "refine_boxes": True},
}
"""All that the `evaluation` section can add to a prediction."""


@pytest.mark.extended
@with_cuda_types
@pytest.mark.usefixtures("fake_kernels")
@pytest.mark.parametrize("additions", ADDITIONS.values(), ids=ADDITIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_ensemble_with_all_additions_asks_for_its_detections_alone(
    root: Path, kind: str, additions: dict[str, Any]
) -> None:
    roi = {"global_context": True, "stages": 2, "hidden_dim": 16}
    parts = [
        tiny_task(
            root,
            neck,
            task=kind,
            model={"neck": {"kind": neck, "channels": 16}, "roi": roi},
            evaluation=additions,
        )[0]
        for neck in NECKS
    ]
    first, other = parts
    task = type(first)(first.config, first.model, first.classes, ensemble=[other.model]).eval()
    for model in (first.model, other.model):
        prepare_for_prediction(model, BF16, device=torch.device("cpu"))
    data = task.val_data()
    batch = data.collate([data.load(index, index) for index in range(2)])
    with fake_cuda(bf16=True), torch.no_grad():
        batch = on_fake_device(task, batch)
        with WaitSpotter() as spotter:
            found, masks = task._pipeline.select(batch.at_all_scales, all_masks=True)
        assert spotter.found == []
        assert found.boxes.is_cuda
        assert found.boxes.dtype == torch.float32
        assert (masks is not None) == (kind == "segmentation")
        check_first_request(task, batch, kind)


@with_cuda_types
@pytest.mark.usefixtures("fake_kernels")
def test_a_prepared_detector_launches_less(tmp_path: Path) -> None:
    task, batch = tiny_task(tmp_path, "fpn", model={"backbone": {"kind": "resnet18"}})
    task.eval()
    original = copy.deepcopy(task.model)
    calls = []
    for prepared in (False, True):
        if prepared:
            prepare_for_prediction(task.model, BF16, device=torch.device("cpu"))
        model = copy.deepcopy(task.model)  # moved below
        with fake_cuda(bf16=True), torch.no_grad():
            move_to_fake_device(model)
            with WaitSpotter() as spotter:
                model.select(to_fake_device(batch).images)
        calls.append(spotter.calls)
    num_norms = sum(isinstance(each, FrozenBatchNorm2d) for each in original.modules())
    assert (calls[0]["rsqrt"], calls[1]["rsqrt"]) == (num_norms, 0)
    # each fold was a cast of the shift, products with weights and shift, and a sum; under autocast
    # both kinds of weights were cast once more
    assert calls[1]["_to_copy"] <= calls[0]["_to_copy"] - 3 * num_norms
    assert calls[1]["mul"] <= calls[0]["mul"] - 3 * num_norms


@with_cuda_types
@pytest.mark.parametrize("kind", ["group", "batch", "frozen"])
def test_norms_keep_the_dtype_under_autocast(kind: NormKind) -> None:
    norm = make_norm(kind, 32).eval()
    with fake_cuda(bf16=True):
        move_to_fake_device(norm)
        x = torch.empty(2, 32, 4, 4, dtype=torch.bfloat16, device="cuda")
        assert norm(x).dtype == torch.bfloat16


def test_all_networks_of_an_ensemble_are_moved(tmp_path: Path) -> None:
    task, _ = make_case(tmp_path, "classification ensemble")
    move_task(task, task.config.loop, torch.device("meta"))
    assert len({id(each) for each in task.parameters()}) == 3 * len([*task.model.parameters()])
    assert {each.device.type for each in (*task.parameters(), *task.buffers())} == {"meta"}


@with_cuda_types
def test_a_tensor_without_values_tells_none() -> None:
    with FakeTensorMode():
        values = torch.empty(3, device="cuda")
        with pytest.raises(DataDependentOutputException):
            bool(values.sum() > 0)
        with pytest.raises(RuntimeError, match="device"):
            values + torch.zeros(3)


def test_the_spotter_sees() -> None:
    values = torch.arange(3.0)
    with WaitSpotter() as spotter:
        bool(values.sum() > 0)
        values[values > 1]
        values[torch.tensor([0, 2])]
    assert spotter.found == ["_local_scalar_dense", "index", "lift_fresh"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("neck", NECKS)
def test_forward_and_backward_compile_into_one_graph(root: Path, neck: str, kind: str) -> None:
    task, batch = tiny_task(root, neck, task=kind)
    parameters = [p for p in task.model.parameters() if p.requires_grad]
    compiled = torch.compile(task.losses, backend="aot_eager", fullgraph=True)
    found, expected = compiled(batch), task.losses(batch)
    torch.testing.assert_close(found, expected)
    gradients = [
        torch.autograd.grad(torch.stack(list(losses.values())).sum(), parameters)
        for losses in (found, expected)
    ]
    torch.testing.assert_close(*gradients)
