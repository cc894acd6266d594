"""The table of classes that `selftrain evaluate` prints, and what is to be said of them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
from rich.table import Table
from rich.text import Text

from pipeline.evaluate.on_demand import Evaluation

MAX_ROWS = 20
MAX_NAME = 24
NUM_TAKEN_FOR = 2


def class_table(found: Evaluation) -> Table:
    """One line per class that has images, the least recognized first; of many classes only those."""
    of = found.of_classes
    order = of.least_recognized
    caption = f"the {MAX_ROWS} of {len(order)} classes with the lowest recall" if len(order) > MAX_ROWS else None
    table = Table(title="Classes", caption=caption)
    table.add_column("class", max_width=MAX_NAME, no_wrap=True, overflow="ellipsis")
    for heading in ("images", "precision", "recall", "f1"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("mostly taken for", max_width=MAX_NAME, no_wrap=True, overflow="ellipsis")
    for c in order[:MAX_ROWS]:
        others = islice(found.taken_for(int(c)).items(), NUM_TAKEN_FOR)
        figures = (of.precision[c], of.recall[c], of.f1[c])
        table.add_row(
            Text(found.classes[c]),
            f"{of.count[c]:,}",
            *("-" if np.isnan(value) else f"{value:.3f}" for value in figures),
            Text(", ".join(f"{name} ({count:,})" for name, count in others)),
        )
    return table


def member_table(found: Evaluation) -> Table:
    """One line per model of an ensemble, and one for the mean of their probabilities."""
    table = Table(title="Models")
    table.add_column("model", overflow="fold")
    for heading in ("top1", "top5", "nll", "ece"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, metrics in [*found.members.items(), (f"mean of {len(found.members)}", found.metrics)]:
        values = (metrics.top1, metrics.top5, metrics.nll, metrics.ece)
        table.add_row(Text(name), *(f"{value:.4f}" for value in values))
    return table


def notes(found: Evaluation) -> Iterator[str]:
    """Sentences on classes without images and on uneven ones."""
    of = found.of_classes
    if missing := int((~of.present).sum()):
        all_classes = len(found.classes)
        yield f"{missing} of {all_classes} classes have no images; balanced_accuracy and macro_f1 leave them out."
    if of.is_uneven:
        sizes = of.count[of.present]
        yield (
            f"The classes are uneven ({sizes.min():,} to {sizes.max():,} images): balanced_accuracy and macro_f1 count "
            "every class alike, top1 counts every image alike."
        )
