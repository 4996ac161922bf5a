import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN as PeerRCNN

from detection.structures import DetectionBatch
from tools.lab.benchmarks.measure import Comparison
from tools.lab.benchmarks.networks import R50_FPN, SMALL_SIZE, make_batch, make_task, peer_inputs
from tools.lab.benchmarks.peers import WAYS, peer_in, peer_prediction, speed_rows


def test_a_row_for_each_way() -> None:
    comparisons = {way: Comparison((1.0,), (2.0 + place,)) for place, way in enumerate(WAYS)}
    rows = speed_rows("step", comparisons, {WAYS[0]: (None, None), WAYS[1]: (4.0, 5.0)})
    assert [(row.work, row.value, row.promised, row.aim, row.holds) for row in rows] == [
        ("step, like for like", 2.0, None, None, None),
        ("step, peer as its users run it", 3.0, 4.0, 5.0, False),
    ]


def convolves_channels_last(peer: PeerRCNN, batch: DetectionBatch) -> bool:
    """Return whether all convolutions of the backbone get channels-last inputs."""
    layouts: list[bool] = []

    def note(_: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
        layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))

    for each in peer.backbone.modules():
        if isinstance(each, nn.Conv2d):
            each.register_forward_hook(note)
    peer(peer_inputs(batch))
    assert len(layouts) > 50
    return all(layouts)


@pytest.mark.extended
def test_like_for_like_the_peer_is_channels_last_and_finds_the_same_objects() -> None:
    case = R50_FPN.smaller()
    task, batch = make_task(case), make_batch(1, size=SMALL_SIZE)
    peers = [peer_in(case, task, batch, way).eval() for way in WAYS]
    assert [convolves_channels_last(peer, batch) for peer in peers] == [True, False]
    found = [peer_prediction(case, task, batch, way, precision="fp32")()[0] for way in WAYS]
    assert len(found[0]["boxes"]) > 10
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-3)
