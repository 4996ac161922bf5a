"""Checks that our network and the peer's give the same losses and detections.

The times of the two are comparable only if they do.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN as PeerRCNN

from detection.models.proposals import make_proposals
from detection.samples import SampledBoxes, sample_anchors, sample_rois, with_ground_truth
from detection.structures import DetectionBatch, Detections, Proposals
from detection.tasks.detection import DetectionTask
from tools.lab.benchmarks.errors import DisagreementError
from tools.lab.benchmarks.measure import check_close
from tools.lab.benchmarks.networks import peer_image_list, peer_inputs, peer_targets

LOSS_RTOL = 1e-4
TORCHVISION_LOSSES = {  # our name of a loss -> torchvision's
    "rpn_objectness": "loss_objectness",
    "rpn_box": "loss_rpn_box_reg",
    "roi_class": "loss_classifier",
    "roi_box": "loss_box_reg",
    "mask": "loss_mask",
}

Sampler = Callable[[list[Tensor]], tuple[list[Tensor], list[Tensor]]]


@torch.no_grad()
def check_losses(task: DetectionTask, peer: PeerRCNN, batch: DetectionBatch) -> None:
    """Raise DisagreementError if a feature map or a loss differs.

    Both networks run completely, but the peer gets the proposals and samples of ours, because its
    own samples are random.
    """
    model, images = task.model, peer_image_list(peer, batch)
    features = model.features(batch.images)
    their_features = peer.backbone(images.tensors)
    for name, level in their_features.items():
        # one map: c4; a pyramid: p2 to p6, in the same order on both sides
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
    # replace the peer's random samplers, and restore them afterwards
    samplers = (peer.rpn.fg_bg_sampler, peer.roi_heads.fg_bg_sampler)
    config, thresh = model.config, model.config.crowd_ioa_thresh
    anchors = sample_anchors(
        rpn.anchors, rpn.anchor_valid, batch, config=config.rpn, crowd_ioa_thresh=thresh
    )
    candidates, valid = with_ground_truth(proposals, batch.targets)
    rois = sample_rois(candidates, valid, batch, config=config.roi, crowd_ioa_thresh=thresh)
    peer.rpn.fg_bg_sampler = _sampler_of(anchors)
    peer.roi_heads.fg_bg_sampler = _sampler_of(_without_padding(rois, proposals))
    _, rpn_losses = peer.rpn(images, their_features, targets)
    # torchvision has a list of proposals per image, without padding
    boxes = [row[valid] for row, valid in zip(proposals.boxes, proposals.valid, strict=True)]
    _, roi_losses = peer.roi_heads(their_features, boxes, images.image_sizes, targets)
    peer.rpn.fg_bg_sampler, peer.roi_heads.fg_bg_sampler = samplers
    expected = rpn_losses | roi_losses
    names = {TORCHVISION_LOSSES[name]: name for name in losses}
    if names.keys() != expected.keys():
        raise DisagreementError(f"losses: expected {sorted(expected)}, got {sorted(names)}")
    for their_name, name in names.items():
        loss, theirs = losses[name], expected[their_name]
        check_close(f"loss {name}", loss, theirs, rtol=LOSS_RTOL, atol=1e-6)


@torch.no_grad()
def check_detections(task: DetectionTask, peer: PeerRCNN, batch: DetectionBatch) -> int:
    """Return the number of detections; raise DisagreementError if the two sides' differ."""
    found = task.predict(batch)
    for ours, theirs in zip(found, peer(peer_inputs(batch)), strict=True):
        check_objects(ours, theirs)
    return sum(len(each.boxes) for each in found)


def check_objects(ours: Detections, peer: Mapping[str, Tensor]) -> None:
    """Raise DisagreementError if the two sides' detections in one image differ.

    Ours are on the CPU, the peer's on the device of its network.
    """
    boxes, scores, labels = (peer[name].cpu() for name in ("boxes", "scores", "labels"))
    if len(ours) != len(boxes):
        raise DisagreementError(f"detections: expected {len(boxes)}, got {len(ours)}")
    check_close("scores", ours.scores, scores, rtol=0, atol=1e-4)
    # Equal scores may be ordered differently: compare each box with its nearest one of the same
    # class. torchvision's label 0 is the background.
    distances = torch.cdist(ours.boxes, boxes, p=torch.inf)
    # (N, N); pairs of different classes are put out of reach
    distances += 1e6 * (ours.labels[:, None] != labels - 1)
    for dim in (0, 1) if len(ours) else ():  # no box is missing and no box is extra
        nearest = distances.amin(dim=dim)
        check_close("boxes", nearest, torch.zeros_like(nearest), rtol=0, atol=0.05)


def _sampler_of(samples: SampledBoxes) -> Sampler:
    """Return a sampler for torchvision that returns the samples that ours has chosen."""

    def sample(labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        foreground = [torch.zeros_like(row).bool() for row in labels]
        background = [torch.zeros_like(row).bool() for row in labels]
        # one mask over all candidates of an image, as torchvision's samplers return
        for row, (idxs, valid, is_fg) in enumerate(
            zip(samples.idxs, samples.valid, samples.is_fg, strict=True)
        ):
            foreground[row][idxs[valid & is_fg]] = True
            background[row][idxs[valid & ~is_fg]] = True
        return foreground, background

    return sample


def _without_padding(samples: SampledBoxes, proposals: Proposals) -> SampledBoxes:
    """Renumber samples for a list of candidates without padding.

    Our candidates are the proposals, padded to the same number in every image, then the ground
    truth; the peer gets the valid proposals only. Indices of ground truth are therefore lower by
    the number of padded proposals.
    """
    total = proposals.boxes.shape[1]
    missing = total - proposals.valid.sum(dim=1, keepdim=True)
    # indices up to `total` are proposals; those that are valid come first
    return samples._replace(
        idxs=torch.where(samples.idxs < total, samples.idxs, samples.idxs - missing)
    )
