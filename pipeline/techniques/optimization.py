"""The rows of techniques of how a training begins and how it steps, beside those of the catalog."""

from __future__ import annotations

from pipeline.techniques.technique import Technique

OPTIMIZATION: tuple[Technique, ...] = (
    Technique(
        "schedule",
        "optimizer",
        ("training.schedule",),
        {"name": "step"},
        "pipeline.train.schedule:lr_at",
        "He 2019 (Bag of Tricks), 2.1; Krizhevsky 2012, 5",
    ),
)
