"""Draw the decision boundaries of every method over the points."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.demos.moons.methods import Points
from pipeline.demos.moons.networks import Networks
from pipeline.report.canvas import ACCENT, SECOND, canvas

_TITLES = {
    "supervised": "Supervised",
    "pseudo_label": "Pseudo-label",
    "uda": "UDA",
    "off": "No feedback",
    "meta": "Meta Pseudo Labels",
    "wrong_sign": "Wrong sign",
}
_REACH = 2.0
_NUM = 160
_SHOWN = 300
"""The number of test points shown, spread over the split, because that is sorted by class."""


@torch.no_grad()
def draw_boundaries(
    models: Mapping[str, Networks], accuracies: Mapping[str, list[float]], points: Points, test: tuple[Tensor, Tensor]
) -> bytes:
    """A PNG with one panel per method: color is the mean prediction of all seeds, and each line is a seed's boundary.

    `test` has the test points [N, 2] and their classes [N].
    """
    axis = torch.linspace(-_REACH, _REACH, _NUM)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).view(-1, 1, 2)
    every = max(len(test[0]) // _SHOWN, 1)
    shown, classes = (tensor[::every].numpy() for tensor in test)
    with canvas(len(models), height=2.2) as drawing:
        for ax, (name, model) in zip(drawing.axes, models.items(), strict=True):
            probs = F.softmax(model(grid), -1)[..., 1].view(-1, _NUM, _NUM).numpy()
            extent = (-_REACH, _REACH, -_REACH, _REACH)
            ax.imshow(probs.mean(0), origin="lower", extent=extent, cmap="PuOr_r", vmin=0, vmax=1, alpha=0.5)
            for one in probs:
                if one.min() < 0.5 < one.max():
                    ax.contour(axis, axis, one, [0.5], colors="black", linewidths=0.4, alpha=0.5)
            colors = np.where(classes == 0, ACCENT, SECOND)
            ax.scatter(shown[:, 0], shown[:, 1], s=1.5, c=colors, alpha=0.6, linewidths=0)
            marks = np.where(points.labels.numpy() == 0, ACCENT, SECOND)
            few = points.labeled.numpy()
            ax.scatter(few[:, 0], few[:, 1], s=28, c=marks, edgecolors="black", linewidths=0.9, zorder=3)
            ax.set(title=f"{_TITLES[name]}\nmean {100 * np.mean(accuracies[name]):.1f}%", xticks=[], yticks=[])
            ax.grid(visible=False)
    return drawing.png
