"""Rows of classes: the class logits, boxes and masks of a file become those of a model.

K classes of the model, F of the file, N of the model that the file does not have. Background is the
last of K+1 logits; boxes have four rows for each class, masks one.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from backbones.weights import check_float, listing
from engine.errors import UserError

LOGITS, DELTAS, MASKS = "box_predictor.class_logits.", "box_predictor.deltas.", "mask_head.logits."
NEW_CLASS_ODDS = 1000.0
"""How many times as likely as all new classes together background is at first.

Then the new classes take at most a thousandth of the background's probability, and no score of
another class changes by more than a quarter of that."""
_MAX_NAMED = 20


def rows_by_name(in_file: Sequence[str], wanted: Sequence[str]) -> list[int | None]:
    """Return the file's row for each wanted class; None for a class that the file does not have."""
    return [in_file.index(name) if name in in_file else None for name in wanted]


def take_rows(
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    rows: Sequence[int | None],
    *,
    num_in_file: int,
    path: Path | str,
    class_agnostic_boxes: bool = False,
) -> dict[str, Tensor]:
    """Return a file's state with the rows of the model's classes, to the bit, and background's.

    The boxes and masks of a new class keep the model's random rows. Its logit's row is background's
    plus the model's random one, with log(`NEW_CLASS_ODDS` N) subtracted from the bias: what has no
    name in the file was background to it, so the new logit follows background's at a distance
    (Cermelli et al. 2020, Modeling the Background, start new classes from background as well). In
    a trial with one linear layer this moved no old score by more than 3e-4, and the new class was
    learned faster than from a random row with a bias of -7.

    Args:
        state: the file's, by our names.
        own: the model's, with random weights.
        rows: for each of the model's classes its row in the file; None: it is new.
        num_in_file: F.
        path: of the file, for messages.
        class_agnostic_boxes: boxes have the same rows for all classes, which are kept.

    Raises:
        UserError: a layer of the file has not the rows of F classes.
    """
    state = dict(state)
    is_new = torch.tensor([*(row is None for row in rows), False])  # background is last
    offset = math.log(NEW_CLASS_ODDS * max(1, int(is_new.sum())))
    for name, tensor in state.items():
        # `in`, not startswith: names of later stages have a prefix
        layer = next((layer for layer in (LOGITS, DELTAS, MASKS) if layer in name), None)
        if layer is None or (layer == DELTAS and class_agnostic_boxes):
            continue
        per_class, num_more = (4, 0) if layer == DELTAS else (1, int(layer == LOGITS))
        require_rows(name, tensor, per_class * num_in_file + num_more, path)
        check_float(name, tensor, path)
        if name not in own or own[name].shape[1:] != tensor.shape[1:]:
            continue  # loading reports it
        if layer == LOGITS:
            taken = _take(tensor, own[name], [*rows, num_in_file], per_class=1)
            taken[is_new] += tensor[-1] - (offset if name.endswith("bias") else 0.0)
            state[name] = taken
        else:
            state[name] = _take(tensor, own[name], rows, per_class=per_class)
    return state


def _take(tensor: Tensor, own: Tensor, rows: Sequence[int | None], *, per_class: int) -> Tensor:
    """Return `own` with the rows of a file's classes, in the file's dtype."""
    taken = own.to(tensor.dtype, copy=True).unflatten(0, (-1, per_class))
    idxs = torch.tensor([-1 if row is None else row for row in rows])
    taken[idxs >= 0] = tensor.unflatten(0, (-1, per_class))[idxs[idxs >= 0]]
    rows_of_all: Tensor = taken.flatten(0, 1)
    return rows_of_all


def require_rows(name: str, tensor: Tensor, rows: int, path: Path | str) -> None:
    """Raise UserError if a tensor has another number of rows."""
    if tensor.shape[:1] != (rows,):
        raise UserError(f"{path}: {name}: expected {rows} rows, got {tuple(tensor.shape)}")


def class_note(in_file: Sequence[str], wanted: Sequence[str]) -> str:
    """Return the log line of `rows_by_name`: classes carried over, new, and of the file dropped.

    It also names new classes that the file spells otherwise.
    """
    parts = (
        ("carried over", [name for name in wanted if name in in_file]),
        ("new at random", [name for name in wanted if name not in in_file]),
        ("of the file dropped", [name for name in in_file if name not in wanted]),
    )
    counts = [
        f"{len(names)} {what}" + (f" ({listing(names, _MAX_NAMED)})" if names else "")
        for what, names in parts
    ]
    close = {_simplified(name): name for name in in_file if name not in wanted}
    hints = [
        f"; {name!r} is new because the file has {close[_simplified(name)]!r}"
        for name in wanted
        if name not in in_file and _simplified(name) in close
    ]
    return f"classes: {', '.join(counts)}{''.join(hints)}"


def _simplified(name: str) -> str:
    """Return a name without what spellings of one class differ in: case, spaces, `_` and `-`."""
    return "".join(letter for letter in name.casefold() if letter not in " _-")
