"""Division of units into parts such that each part has its share of every count.

U units (an image, or images that must stay together), P parts, F counts of each unit: its images,
and the objects and images of each class.

The cost of a division is the sum over parts and counts of (count - share)^2 / share, the shares
being fraction * total. A greedy pass places the units one by one, those with rare classes first, as
in Sechidis et al., "On the stratification of multi-label data", 2011. Exchanges of two units
between parts then lower the cost until none of those tried does.
"""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from engine.log import RunLog

_SAMPLE = 128
"""Units of each of two parts between which the best exchange is looked for."""
_FAILURES = 15
"""Searches in a row without an exchange, for each pair of parts, that end the search."""
_ROUNDS = 1000
"""Searches at most; each takes about 1 ms."""
_STARTS, _MANY_UNITS = 5, 5000
"""Greedy passes in different orders, of which the best is taken; only one for that many units."""
_DECIMALS = 9  # of costs that are compared: the last bits differ between processors


@dataclass(frozen=True)
class UnitCounts:
    """Counts of units as a sparse matrix (U, F). Column 0 counts a unit's images, at least 1.

    columns: (E,) int64, the columns of the counts, unit by unit. values: (E,) float64, the counts.
    offsets: (U + 1,) int64; unit u has the entries `offsets[u]:offsets[u + 1]`. num_columns: F.
    """

    columns: np.ndarray
    values: np.ndarray
    offsets: np.ndarray
    num_columns: int

    def __len__(self) -> int:
        """Return the number of units."""
        return len(self.offsets) - 1

    def row(self, unit: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the columns and values of a unit."""
        entries = slice(self.offsets[unit], self.offsets[unit + 1])
        return self.columns[entries], self.values[entries]

    def dense(self, units: np.ndarray) -> np.ndarray:
        """Return the counts of some units, (len(units), F)."""
        table = np.zeros((len(units), self.num_columns))
        for place, unit in enumerate(units.tolist()):
            columns, values = self.row(unit)
            table[place, columns] = values
        return table

    def totals(self) -> np.ndarray:
        """Return the sum over all units, (F,)."""
        return np.bincount(self.columns, self.values, self.num_columns)


def stratify(
    counts: UnitCounts, sizes: np.ndarray, *, seed: int, log: RunLog | None = None
) -> np.ndarray:
    """Return the part of each unit, (U,) int64 in 0..P-1.

    Args:
        counts: of the units; their order affects the result, so callers sort them.
        sizes: (P,) int64, images of each part; they sum to the number of images. They are met
            exactly if each unit is one image, otherwise as nearly as the search finds.
        seed: chooses among equally good divisions.
        log: shows the progress.
    """
    rng = np.random.default_rng(seed)
    shares = np.outer(sizes / sizes.sum(), counts.totals())  # (P, F)
    # 0 for counts that no unit has; at least a quarter, or a class of one object would dominate
    weights = np.where(shares > 0, 1 / np.maximum(shares, 0.25), 0.0)
    weights[:, 0] *= 100  # the number of images matters more than any class
    log = log or RunLog(None, is_main=False)
    best, lowest = np.zeros(len(counts), np.int64), math.inf
    for _ in range(_STARTS if len(counts) < _MANY_UNITS else 1):
        order = log.progress(_order(counts, rng).tolist(), len(counts), "dividing")
        parts, excess = _place(counts, shares, weights, order, rng)
        _exchange(counts, parts, excess, weights, rng)
        cost = round(float((excess**2 * weights).sum()), _DECIMALS)
        if cost < lowest:
            best, lowest = parts, cost
    return best


def _order(counts: UnitCounts, rng: np.random.Generator) -> np.ndarray:
    """Return the units in the order of their placement, (U,).

    Large groups come first, for which there must be room; then units with rare classes; then units
    with many objects of it. Ties are in random order.
    """
    totals = counts.totals()
    units = np.repeat(np.arange(len(counts)), np.diff(counts.offsets))
    is_image = counts.columns == 0
    images = np.zeros(len(counts))
    images[units[is_image]] = counts.values[is_image]
    rarity = np.full(len(counts), np.inf)
    np.minimum.at(rarity, units[~is_image], totals[counts.columns[~is_image]])
    objects = np.bincount(units[~is_image], counts.values[~is_image], len(counts))
    # powers of two, so that ties are common enough for the seed to matter
    large, many = np.floor(np.log2(images)), np.floor(np.log2(objects + 1))
    order: np.ndarray = np.lexsort([rng.random(len(counts)), -many, rarity, -large])
    return order


def _place(
    counts: UnitCounts,
    shares: np.ndarray,
    weights: np.ndarray,
    order: Iterable[int],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Place each unit where the cost grows least; return parts (U,) and count - share (P, F)."""
    excess = -shares.copy()
    parts = np.zeros(len(counts), np.int64)
    preference = rng.random((len(counts), len(shares))) * 1e-6  # breaks ties
    for unit in order:
        columns, values = counts.row(unit)
        # (e + x)^2 - e^2 = x (2 e + x)
        growth = values * (2 * excess[:, columns] + values) * weights[:, columns]
        cost = np.round(growth.sum(axis=1), _DECIMALS) + preference[unit]
        room = -excess[:, 0] + 1e-6 >= values[columns == 0]
        if room.any():
            cost[~room] = np.inf
            part = int(cost.argmin())
        else:
            part = int(excess[:, 0].argmin())
        parts[unit] = part
        excess[part, columns] += values
    return parts, excess


def _exchange(
    counts: UnitCounts,
    parts: np.ndarray,
    excess: np.ndarray,
    weights: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """Exchange units between two parts, or move one, where that lowers the cost; in place."""
    if len(excess) < 2:
        return
    # Where each unit is one image, the sizes are exact, and a move without return would end that.
    may_move = len(counts) < counts.totals()[0]
    nothing = np.zeros((int(may_move), counts.num_columns))
    members = [np.flatnonzero(parts == part) for part in range(len(excess))]
    pairs = list(itertools.combinations(range(len(excess)), 2))
    # without sampling, a pair that failed once fails until one of its parts changes
    is_sampled = max(map(len, members)) > _SAMPLE
    patience = len(pairs) * (_FAILURES if is_sampled else 1)
    failures = 0
    for one, other in itertools.islice(itertools.cycle(pairs), _ROUNDS):
        if failures == patience:
            return
        picked = [_sample(members[part], rng) for part in (one, other)]
        # a last row of zeros: nothing comes back, so that a unit moves
        mine, theirs = (np.vstack([counts.dense(units), nothing]) for units in picked)
        # d = mine - theirs leaves `one` for `other`. The cost changes by
        # sum of d^2 (w1 + w2) + 2 d (e2 w2 - e1 w1) over the counts, here for all pairs.
        both = weights[one] + weights[other]
        slope = 2 * (excess[other] * weights[other] - excess[one] * weights[one])
        change = (mine**2 @ both + mine @ slope)[:, None] + (theirs**2 @ both - theirs @ slope)
        change -= 2 * (mine * both) @ theirs.T
        change = np.round(change, _DECIMALS)
        here, there = np.unravel_index(int(change.argmin()), change.shape)
        if change[here, there] >= 0:
            failures += 1
            continue
        failures = 0
        difference = mine[here] - theirs[there]
        excess[one] -= difference
        excess[other] += difference
        if here < len(picked[0]):
            parts[picked[0][here]] = other
        if there < len(picked[1]):
            parts[picked[1][there]] = one
        for part in (one, other):
            members[part] = np.flatnonzero(parts == part)


def _sample(units: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if len(units) <= _SAMPLE:
        return units
    return np.sort(rng.choice(units, _SAMPLE, replace=False))
