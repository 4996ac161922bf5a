"""Plots of an evaluation: precision over recall for every class.

K classes, T=10 IoU thresholds (0.5, 0.55, ... 0.95), R=101 recall thresholds (0, 0.01, ... 1).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from backbones.plots import make_panels, plain_text, save_figure

MAX_PANELS = 100
# index of each drawn threshold in 0.5, 0.55, ... 0.95
_CURVES = {"IoU 0.5": 0, "IoU 0.75": 5, "IoU 0.9": 8}


def write_pr_curves(path: Path, precision: np.ndarray, class_names: Sequence[str]) -> None:
    """Write a PNG with a panel per class, each with curves at three IoU thresholds.

    Args:
        path: the PNG file.
        precision: (T, R, K), NaN for a class without objects, which gets no panel. Of more than
            `MAX_PANELS` classes only the first are drawn.
        class_names: K names.
    """
    known = [k for k in range(len(class_names)) if not np.isnan(precision[0, 0, k])]
    drawn = known[:MAX_PANELS]
    figure, panels = make_panels(len(drawn))
    # thick lines first: the curves often coincide, and thinner ones on top leave all visible
    for axes, k in zip(panels, drawn, strict=True):
        recall = np.linspace(0, 1, precision.shape[1])
        for width, (label, threshold) in zip((3, 2, 1), _CURVES.items(), strict=True):
            axes.plot(recall, precision[threshold, :, k], label=label, linewidth=width)
        title = f"{class_names[k]}  AP {100 * precision[..., k].mean():.1f}"
        axes.set_title(plain_text(title), fontsize=9)
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
    absent = len(class_names) - len(known)
    figure.suptitle(
        f"precision over recall: {len(drawn)} of {len(class_names)} classes, "
        f"{absent} without objects"
    )
    if panels:
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower right", ncols=3, fontsize=9)
    save_figure(figure, path)
