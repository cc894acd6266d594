"""The rows of techniques of how a training begins and how it steps, beside those of the catalog."""

from __future__ import annotations

from pipeline.techniques.technique import Technique

OPTIMIZATION: tuple[Technique, ...] = (
    Technique(
        "init",
        "init",
        ("training.init",),
        {"name": "kaiming"},
        "pipeline.models.initialization:draw_weights",
        "Glorot 2010, eq. 16; He 2015, eq. 10 and 14; Krizhevsky 2012, 5",
    ),
    Technique(
        "zero_gamma",
        "init",
        ("training.zero_gamma",),
        True,
        "pipeline.models.initialization:zero_gamma",
        "Goyal 2017, 5.1; He 2019 (Bag of Tricks), 3.1",
    ),
    Technique(
        "classical_momentum",
        "optimizer",
        ("training.optimizer.nesterov",),
        False,
        "pipeline.train.optimizer:make_optimizer",
        "Polyak 1964; Sutskever 2013, 2",
    ),
    Technique(
        "eps",
        "optimizer",
        ("training.optimizer.eps", "training.optimizer.decay"),
        None,
        "pipeline.train.optimizer:make_optimizer",
        "Tieleman and Hinton 2012; Zhang 2017 (PolyNet)",
    ),
    Technique(
        "schedule",
        "optimizer",
        ("training.schedule",),
        {"name": "step"},
        "pipeline.train.schedule:lr_at",
        "He 2019 (Bag of Tricks), 2.1; Krizhevsky 2012, 5",
    ),
)
