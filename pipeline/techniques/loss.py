"""The rows of what a training learns: its loss, and the targets in it."""

from __future__ import annotations

from pipeline.techniques.technique import Technique

LOSS: tuple[Technique, ...] = (
    Technique(
        "label_smoothing",
        "loss",
        ("training.label_smoothing",),
        0.1,
        "pipeline.train.losses:hard_cross_entropy",
        "Szegedy 2016, 7",
    ),
    Technique(
        "distillation",
        "loss",
        ("training.distillation",),
        {},
        "pipeline.train.losses:distillation_loss",
        "Hinton 2015, 2; He 2019 (Bag of Tricks), 5.3",
    ),
    Technique(
        "logit_adjustment",
        "loss",
        ("training.logit_adjustment",),
        1.0,
        "pipeline.train.class_sizes:adjust",
        "Menon 2021, eq. 10",
    ),
    Technique(
        "target_temperature",
        "target",
        ("training.target_temperature", "training.targets"),
        0.5,
        "pipeline.selection.targets:sharpen",
        "Xie 2020, 2 and 4.3; Hinton 2015",
    ),
)
