"""Random choice of the candidates that enter a loss, by random keys and top-k.

B images, N candidates, S samples.
"""

import torch
from torch import Tensor


def sample_matches(
    match_labels: Tensor, keys: Tensor, *, num_samples: int, fg_fraction: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose a fixed number of candidates for each image: foreground first, background after it.

    Args:
        match_labels: (B, N) int64: 1 foreground, 0 background, -1 not to be chosen; N may be 0.
        keys: (B, N) int64 in [0, 2**31); of each kind the largest are taken.
        num_samples: candidates wanted for each image.
        fg_fraction: largest share of `num_samples` that is foreground; background fills the rest.

    Returns:
        idxs (B, S) int64 into N, is_fg (B, S) bool and valid (B, S) bool, S = min(num_samples, N).
        Rows that are not valid come last and hold some index.
    """
    size = match_labels.shape[1]
    num_out = min(num_samples, size)
    positions = torch.arange(size, device=keys.device)
    unique_keys = (keys << 32) + positions  # no ties, so every device chooses the same

    def draw(label: int, count: int) -> tuple[Tensor, Tensor]:
        values, idxs = torch.where(match_labels == label, unique_keys, -1).topk(count, dim=1)
        return idxs, (values >= 0).sum(dim=1, keepdim=True)

    fg_idxs, num_fg = draw(1, min(int(num_samples * fg_fraction), num_out))
    bg_idxs, num_bg = draw(0, num_out)
    slots = torch.arange(num_out, device=keys.device).expand(len(keys), -1)
    is_fg = slots < num_fg
    # slot s is foreground s, or background s - num_fg: one gather from both lists side by side
    source = torch.where(is_fg, slots, slots - num_fg + fg_idxs.shape[1])
    idxs = torch.cat([fg_idxs, bg_idxs], dim=1).gather(1, source)
    return idxs, is_fg, slots < num_fg + num_bg
