"""Random sampling of foreground and background candidates for a loss, by random keys and top-k.

B images, N candidates, S samples per image.
"""

import torch
from torch import Tensor


def sample_matches(
    match_labels: Tensor, keys: Tensor, *, num_samples: int, fg_fraction: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample a fixed number of candidates for each image: foreground first, then background.

    Args:
        match_labels: (B, N) int64: 1 foreground, 0 background, -1 never sampled; N may be 0.
        keys: (B, N) int64 random numbers in [0, 2**31); the candidates with the largest keys are
            taken, separately for foreground and background.
        num_samples: number of samples per image.
        fg_fraction: largest share of `num_samples` that is foreground; background fills the rest.

    Returns:
        idxs (B, S) int64 into N, is_fg (B, S) bool and valid (B, S) bool, S = min(num_samples, N).
        Samples that are not valid come last; their index is arbitrary but within N.
    """
    size = match_labels.shape[1]
    # not min(), whose result would be a symbol in a compiled graph with a varying `size`
    num_out = num_samples if size >= num_samples else size
    positions = torch.arange(size, device=keys.device)
    # Key in the high bits, position in the low bits: no ties, so every device samples the same.
    unique_keys = (keys << 32) + positions

    def draw(label: int, count: int) -> tuple[Tensor, Tensor]:
        # Other labels get -1, below every key. Values of -1 are the places left empty.
        values, idxs = torch.where(match_labels == label, unique_keys, -1).topk(count, dim=1)
        return idxs, (values >= 0).sum(dim=1, keepdim=True)

    fg_idxs, num_fg = draw(1, min(int(num_samples * fg_fraction), num_out))
    bg_idxs, num_bg = draw(0, num_out)
    slots = torch.arange(num_out, device=keys.device).expand(len(keys), -1)
    is_fg = slots < num_fg
    # Slot s is foreground number s, or background number s - num_fg. Both lists are concatenated,
    # so one gather with these positions fills all slots.
    source = torch.where(is_fg, slots, slots - num_fg + fg_idxs.shape[1])
    idxs = torch.cat([fg_idxs, bg_idxs], dim=1).gather(1, source)
    return idxs, is_fg, slots < num_fg + num_bg
