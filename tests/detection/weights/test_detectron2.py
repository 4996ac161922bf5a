"""detectron2's networks: what they compute there, they compute here."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from detection.config import SCHEMAS, DetectionConfig
from detection.data.coco import ClassMap
from detection.inference.trained import TrainedDetector
from detection.models import FasterRCNN
from detection.models.build import build_detector
from detection.models.proposals import make_proposals
from detection.predict import Detector
from detection.structures import Detections, ImageBatch
from detection.weights import load_detector_weights
from engine.config import load_config
from engine.errors import UserError
from tests.detection.weights.matched_detections import check_detections

pytestmark = pytest.mark.data

NAMES = tuple("abcde")
CONFIGS = Path(__file__).resolve().parents[3] / "configs/segmentation"
# what docs/WEIGHTS.md says for the files of its model zoo
KEYS = ["model.backbone.stride_in_1x1=true", "model.backbone.pixels=bgr"]
# of these narrow networks, and of how their detections were computed
NARROW = [
    "model.backbone.width_multiplier=0.125",
    "model.neck.channels=16",
    "model.roi.hidden_dim=32",
    "model.mask.hidden_dim=16",
    "model.rpn.pre_nms_topk_test=300",
    "model.rpn.post_nms_topk_test=60",
    "model.roi.max_detections=30",
    "data.eval_short_side=160",
    "data.eval_max_side=240",
    "loop.precision=fp32",
]
TOLERANCE = 2e-5
"""Of boxes, relative to the image's side, and of scores."""
FILES = [("c4", "mask_r50_c4.pkl"), ("fpn", "mask_r50_fpn.pkl"), ("fpn", "mask_r50_fpn.pth")]


def make_config(neck: str, *changes: str) -> DetectionConfig:
    path = CONFIGS / f"mask_rcnn_r50_{neck}_coco_detectron2.yaml"
    config = load_config(path, [*KEYS, *NARROW, *changes], schemas=SCHEMAS)
    assert isinstance(config, DetectionConfig)
    return config


def load(path: Path, config: DetectionConfig) -> tuple[FasterRCNN, tuple[str, ...]]:
    model = build_detector(config, len(NAMES)).eval()
    report = load_detector_weights(
        model, path, config=config, class_names=NAMES, category_ids=range(1, 6)
    )
    assert report.source == "detectron2"
    return model, report.notes


@pytest.mark.parametrize(("neck", "file"), FILES, ids=[file for _, file in FILES])
def test_detects_what_detectron2_detects(data_dir: Path, neck: str, file: str) -> None:
    folder = data_dir / "detectron2_mini"
    config = make_config(neck)
    model, notes = load(folder / file, config)
    assert "no class names in a detectron2 file: classes taken in order" in notes
    assert not any("computes with" in note for note in notes)
    expected = np.load(folder / f"{file.partition('.')[0]}_expected.npz")
    images = [expected[f"image{number}"] for number in range(2)]
    parts = [
        {
            name.partition("/")[2]: torch.from_numpy(expected[name])
            for name in expected
            if name.startswith(f"image{number}/")
        }
        for number in range(2)
    ]
    with torch.no_grad():
        for image, wanted in zip(images, parts, strict=True):
            check_parts(model, image, wanted)
    trained = TrainedDetector(config, ClassMap(NAMES, tuple(range(1, 6))), model)
    detector = Detector(trained, device=torch.device("cpu"))
    for found, wanted in zip(detector.predict(images, batch_size=2), parts, strict=True):
        check(found, wanted)


def check(found: Detections, expected: dict[str, Tensor]) -> None:
    boxes, scores, labels = (expected[key] for key in ("boxes", "scores", "classes"))
    assert len(found) == len(boxes) > 10
    rows = check_detections(found, boxes, scores, labels, tolerance=TOLERANCE)
    count, height, width = expected["masks_shape"].tolist()
    bits = np.unpackbits(expected["masks"].numpy())[: count * height * width]
    theirs = bits.reshape(count, height, width).astype(bool)
    assert found.masks is not None
    ours = np.stack(list(found.masks))[rows.numpy()]
    assert theirs.any()
    assert (ours != theirs).mean() < 2e-5


def check_parts(model: FasterRCNN, image: np.ndarray, expected: dict[str, Tensor]) -> None:
    """Compare features and proposals, of an image padded as in prediction."""
    height, width = image.shape[:2]
    padded = -(-width // model.size_divisor) * model.size_divisor
    pixels = torch.zeros(1, 3, height, padded, dtype=torch.uint8)
    pixels[0, :, :, :width] = torch.from_numpy(image).permute(2, 0, 1)
    size = torch.tensor([[height, width]])
    batch = ImageBatch(pixels, size, size, torch.zeros(1).long(), torch.zeros(1).long())
    features = model.features(batch)
    names = {"c4": "res4"} if "c4" in features else {name: name for name in features}
    for name, theirs in names.items():
        if name in features and f"feature/{theirs}" in expected:
            close(features[name][0], expected[f"feature/{theirs}"])
    rpn = model.rpn(features, batch)
    proposals = make_proposals(rpn, size, config=model.config.rpn, training=False)
    # Random deltas move a box by up to 30 of its sides, which scales up the features' rounding:
    # detectron2's boxes and ours are both up to 1e-5 of the image's side from those in float64.
    tolerance = TOLERANCE * max(height, width)
    torch.testing.assert_close(proposals.boxes[0], expected["proposals"], rtol=0, atol=tolerance)
    close(proposals.scores[0], expected["objectness_logits"].sigmoid())


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("neck", "changes", "keys"),
    [
        (
            "fpn",
            ("model.backbone.pixels=auto", "model.backbone.stride_in_1x1=false"),
            "model.backbone.pixels=bgr model.backbone.stride_in_1x1=true",
        ),
        (
            "c4",
            (
                "task=detection",
                "model.backbone.kind=resnet101",
                "model.rpn.round_anchors=true",
                "model.backbone.stride_in_1x1=false",
            ),
            "task=segmentation model.backbone.kind=resnet50 model.rpn.round_anchors=false "
            "model.backbone.stride_in_1x1=true",
        ),
        ("c4", ("model.mask.hidden_dim=256",), "model.mask.hidden_dim=16"),
        (
            "fpn",
            ("model.neck.kind=c4",),
            "model.neck.kind=fpn",
        ),
        (
            "fpn",
            ("model.neck.channels=256", "model.roi.hidden_dim=1024"),
            "model.neck.channels=16 model.roi.hidden_dim=32",
        ),
    ],
    ids=["pixels", "several", "mask", "neck", "widths"],
)
def test_wrong_keys_are_named_in_one_line(
    data_dir: Path, neck: str, changes: tuple[str, ...], keys: str
) -> None:
    path = data_dir / f"detectron2_mini/mask_r50_{neck}.pkl"
    config = make_config(neck, *changes)
    with torch.device("meta"):
        model = build_detector(config, len(NAMES))
    with pytest.raises(UserError) as caught:
        load_detector_weights(
            model, path, config=config, class_names=NAMES, category_ids=range(1, 6)
        )
    assert str(caught.value) == (
        f"{path}: expected the config's network, got another; it fits with {keys}"
    )


def test_settings_that_change_detections_a_little_are_said(data_dir: Path) -> None:
    other = ("model.roi.sampling_ratio=2", "model.roi.drop_empty=first", "data.size_divisor=32")
    config = make_config("c4", *other)
    _, notes = load(data_dir / "detectron2_mini/mask_r50_c4.pkl", config)
    assert notes[-2] == (
        "detectron2 computes with model.roi.sampling_ratio=0 model.roi.drop_empty=last "
        "data.size_divisor=1; without it detections differ a little"
    )


def test_anchors_in_the_files_buffers_are_checked(data_dir: Path, tmp_path: Path) -> None:
    with (data_dir / "detectron2_mini/mask_r50_fpn.pth").open("rb") as file:
        state = torch.load(file, weights_only=True)["model"]
    for level, size in enumerate((32, 64, 128, 256, 500)):
        width = torch.tensor([size * ratio**-0.5 for ratio in (0.5, 1.0, 2.0)]) / 2
        height = torch.tensor([size * ratio**0.5 for ratio in (0.5, 1.0, 2.0)]) / 2
        name = f"proposal_generator.anchor_generator.cell_anchors.{level}"
        state[name] = torch.stack([-width, -height, width, height], dim=1)
    path = tmp_path / "older.pth"
    torch.save({"model": state}, path)
    with pytest.raises(UserError, match=r"with model.rpn.anchor_sizes=\[32,64,128,256,500\]$"):
        load(path, make_config("fpn"))
    load(path, make_config("fpn", "model.rpn.anchor_sizes=[32,64,128,256,500]"))


def test_class_agnostic_boxes_need_their_key(data_dir: Path, tmp_path: Path) -> None:
    with (data_dir / "detectron2_mini/mask_r50_fpn.pth").open("rb") as file:
        state = torch.load(file, weights_only=True)["model"]
    for part in ("weight", "bias"):
        name = f"roi_heads.box_predictor.bbox_pred.{part}"
        state[name] = state[name][:4]
    path = tmp_path / "agnostic.pth"
    torch.save(state, path)
    with pytest.raises(UserError, match=r"it fits with model\.roi\.class_agnostic_boxes=true$"):
        load(path, make_config("fpn"))
    model, _ = load(path, make_config("fpn", "model.roi.class_agnostic_boxes=true"))
    bias = state["roi_heads.box_predictor.bbox_pred.bias"]
    torch.testing.assert_close(model.box_predictor.deltas.bias.data, bias)


def test_a_cascade_of_detectron2_loads(data_dir: Path, tmp_path: Path) -> None:
    with (data_dir / "detectron2_mini/mask_r50_fpn.pth").open("rb") as file:
        single = torch.load(file, weights_only=True)["model"]
    state = {}
    for name, tensor in single.items():
        part = next((each for each in ("box_head", "box_predictor") if f".{each}." in name), None)
        if part is None:
            state[name] = tensor
            continue
        tensor = tensor[:4] if "bbox_pred" in name else tensor
        for stage in range(3):
            state[name.replace(f".{part}.", f".{part}.{stage}.")] = tensor + stage
    path = tmp_path / "cascade.pth"
    torch.save({"model": state}, path)
    keys = ("model.roi.class_agnostic_boxes=true", "model.roi.stages=3")
    with pytest.raises(UserError, match=f"it fits with {' '.join(keys)}$"):
        load(path, make_config("fpn"))
    model, _ = load(path, make_config("fpn", *keys))
    ours = model.state_dict()
    for stage, prefix in enumerate(("", "later_stages.0.", "later_stages.1.")):
        for theirs, own in {"box_head": "fc2", "box_predictor": "class_logits"}.items():
            layer = {"fc2": "fc2", "class_logits": "cls_score"}[own]
            expected = single[f"roi_heads.{theirs}.{layer}.weight"] + stage
            torch.testing.assert_close(ours[f"{prefix}{theirs}.{own}.weight"], expected)


def test_80_classes_are_cocos_by_name(data_dir: Path, tmp_path: Path) -> None:
    with (data_dir / "detectron2_mini/mask_r50_fpn.pth").open("rb") as file:
        state = torch.load(file, weights_only=True)["model"]
    rows = {"cls_score": 81, "bbox_pred": 320}
    for layer, count in rows.items():
        for part in ("weight", "bias"):
            name = f"roi_heads.box_predictor.{layer}.{part}"
            state[name] = torch.randn(count, *state[name].shape[1:])
    for part in ("weight", "bias"):
        name = f"roi_heads.mask_head.predictor.{part}"
        state[name] = torch.randn(80, *state[name].shape[1:])
    path = tmp_path / "coco.pth"
    torch.save({"model": state}, path)
    config = make_config("fpn")
    model = build_detector(config, 3)
    report = load_detector_weights(
        model,
        path,
        config=config,
        class_names=("toothbrush", "eel", "person"),
        category_ids=(1, 2, 3),
    )
    assert report.notes[-1].startswith(
        "classes: 2 carried over (toothbrush, person), 1 new at random (eel), 78 of the file "
    )
    ours = model.state_dict()
    masks, logits = ours["mask_head.logits.bias"], ours["box_predictor.class_logits.bias"]
    theirs = state["roi_heads.mask_head.predictor.bias"]
    assert torch.equal(masks[[0, 2]], theirs[[79, 0]])
    theirs = state["roi_heads.box_predictor.cls_score.bias"]
    assert torch.equal(logits[[0, 2, 3]], theirs[[79, 0, 80]])


TODAYS = [  # of detectron2's "new baselines"
    *("model.neck.norm=batch", "model.rpn.num_convs=2", "model.roi.num_fcs=1"),
    *("model.roi.num_convs=4", "model.roi.norm=batch", "model.roi.conv_dim=16"),
    "model.mask.norm=batch",
]


def in_detectron2(name: str) -> str:
    """Return detectron2's name for a tensor of a head of ours."""
    name = re.sub(r"^box_head\.convs\.conv(\d)\.", r"roi_heads.box_head.conv\1.", name)
    name = re.sub(r"^box_head\.convs\.norm(\d)\.", r"roi_heads.box_head.conv\1.norm.", name)
    name = re.sub(r"^box_head\.fc1\.", "roi_heads.box_head.fc1.", name)
    name = re.sub(r"^mask_head\.convs\.conv(\d)\.", r"roi_heads.mask_head.mask_fcn\1.", name)
    name = re.sub(r"^mask_head\.convs\.norm(\d)\.", r"roi_heads.mask_head.mask_fcn\1.norm.", name)
    name = re.sub(r"^rpn_head\.conv\.", "proposal_generator.rpn_head.conv.conv0.", name)
    name = re.sub(r"^rpn_head\.later_convs\.0\.", "proposal_generator.rpn_head.conv.conv1.", name)
    for kind, level in (("lateral", "inner"), ("output", "layer")):
        for number in range(4):
            for part, index in (("", 0), ("norm.", 1)):
                ours = f"fpn.{level}.{number}.{index}."
                name = name.replace(ours, f"backbone.fpn_{kind}{number + 2}.{part}")
    return name


def test_heads_with_more_layers_and_norms(data_dir: Path, tmp_path: Path) -> None:
    with (data_dir / "detectron2_mini/mask_r50_fpn.pth").open("rb") as file:
        theirs = torch.load(file, weights_only=True)["model"]
    layers = ("rpn_head.conv.", "box_head.fc", "mask_fcn", "fpn_")
    kept = {
        name: tensor
        for name, tensor in theirs.items()
        if not any(layer in name for layer in layers) or name.startswith("backbone.bottom_up")
    }
    config = make_config("fpn", *TODAYS)
    wanted = {
        name: torch.rand_like(tensor)
        for name, tensor in build_detector(config, len(NAMES)).state_dict().items()
        if tensor.is_floating_point() and in_detectron2(name) != name
    }
    path = tmp_path / "todays.pth"
    state = kept | {in_detectron2(name): tensor for name, tensor in wanted.items()}
    torch.save(state, path)
    model, _ = load(path, config)
    ours = model.state_dict()
    torch.testing.assert_close({name: ours[name] for name in wanted}, wanted, rtol=0, atol=0)
    with pytest.raises(UserError) as caught:
        load(path, make_config("fpn", "model.roi.conv_dim=16"))
    needed = str(caught.value).partition("it fits with ")[2].split(" ")
    assert sorted(needed) == sorted(set(TODAYS) - {"model.roi.conv_dim=16"})
