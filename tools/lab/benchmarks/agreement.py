"""Whether our network and the peer's give the same: their times mean nothing otherwise."""

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN as PeerRCNN

from detection.models.proposals import make_proposals
from detection.samples import Samples
from detection.structures import DetectionBatch, Proposals
from detection.tasks.detection import DetectionTask
from engine.errors import DisagreementError
from tools.lab.benchmarks.measure import check_close
from tools.lab.benchmarks.networks import peer_images, peer_pictures, peer_targets

LOSS_RTOL = 1e-4
THEIR_NAMES = {
    "rpn_objectness": "loss_objectness",
    "rpn_box": "loss_rpn_box_reg",
    "roi_class": "loss_classifier",
    "roi_box": "loss_box_reg",
    "mask": "loss_mask",
}

Sampler = Callable[[list[Tensor]], tuple[list[Tensor], list[Tensor]]]


@torch.no_grad()
def check_losses(task: DetectionTask, peer: PeerRCNN, batch: DetectionBatch) -> None:
    """Raise DisagreementError where the losses differ: on the same samples, by all of both."""
    model, images = task.model, peer_images(peer, batch)
    features = model.features(batch.images)
    their_features = peer.backbone(images.tensors)
    for name, level in their_features.items():
        ours = (
            features["c4"]
            if len(their_features) == 1
            else list(features.values())[list(their_features).index(name)]
        )
        scale = float(level.abs().max())
        check_close(f"feature {name}", ours, level, rtol=0, atol=1e-4 * scale)
    rpn = model.rpn(features, batch.images)
    proposals = make_proposals(rpn, batch.images.sizes, config=model.config.rpn, training=True)
    losses = task.losses(batch)
    targets = peer_targets(batch)
    samplers = (peer.rpn.fg_bg_sampler, peer.roi_heads.fg_bg_sampler)
    peer.rpn.fg_bg_sampler = _sampler_of(task.sample_anchors(rpn, batch))
    peer.roi_heads.fg_bg_sampler = _sampler_of(_real(task.sample_rois(proposals, batch), proposals))
    _, rpn_losses = peer.rpn(images, their_features, targets)
    boxes = [row[valid] for row, valid in zip(proposals.boxes, proposals.valid, strict=True)]
    _, roi_losses = peer.roi_heads(their_features, boxes, images.image_sizes, targets)
    peer.rpn.fg_bg_sampler, peer.roi_heads.fg_bg_sampler = samplers
    expected = rpn_losses | roi_losses
    names = {THEIR_NAMES[name]: name for name in losses}
    if names.keys() != expected.keys():
        raise DisagreementError(f"losses: expected {sorted(expected)}, got {sorted(names)}")
    for their_name, name in names.items():
        loss, theirs = losses[name], expected[their_name]
        check_close(f"loss {name}", loss, theirs, rtol=LOSS_RTOL, atol=1e-6)


@torch.no_grad()
def check_detections(task: DetectionTask, peer: PeerRCNN, batch: DetectionBatch) -> int:
    """Raise DisagreementError where found objects differ; return how many there are."""
    found = task.predict(batch)
    expected = peer(peer_pictures(batch))
    for ours, theirs in zip(found, expected, strict=True):
        if len(ours.boxes) != len(theirs["boxes"]):
            raise DisagreementError(
                f"detections: expected {len(theirs['boxes'])}, got {len(ours.boxes)}"
            )
        check_close("scores", ours.scores, theirs["scores"], rtol=0, atol=1e-4)
        # equal scores may come in another order: compare each with its nearest
        distances = torch.cdist(ours.boxes, theirs["boxes"], p=torch.inf)
        distances += 1e6 * (ours.labels[:, None] != theirs["labels"] - 1)
        for dim in (0, 1) if len(ours.boxes) else ():  # none is missing, none is too many
            nearest = distances.amin(dim=dim)
            check_close("boxes", nearest, torch.zeros_like(nearest), rtol=0, atol=0.05)
    return sum(len(each.boxes) for each in found)


def _sampler_of(samples: Samples) -> Sampler:
    """Return a sampler for torchvision that chooses what we chose."""

    def sample(labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        foreground = [torch.zeros_like(row).bool() for row in labels]
        background = [torch.zeros_like(row).bool() for row in labels]
        for row, (idxs, valid, is_fg) in enumerate(
            zip(samples.idxs, samples.valid, samples.is_fg, strict=True)
        ):
            foreground[row][idxs[valid & is_fg]] = True
            background[row][idxs[valid & ~is_fg]] = True
        return foreground, background

    return sample


def _real(samples: Samples, proposals: Proposals) -> Samples:
    """Number samples as if proposals that are not there took no place before the truth."""
    total = proposals.boxes.shape[1]
    missing = total - proposals.valid.sum(dim=1, keepdim=True)
    return samples._replace(
        idxs=torch.where(samples.idxs < total, samples.idxs, samples.idxs - missing)
    )
