"""The rows of how a training steps: its optimizer, its learning rate, its updates."""

from __future__ import annotations

from pipeline.techniques.technique import Technique

OPTIMIZATION: tuple[Technique, ...] = (
    Technique(
        "momentum",
        "optimizer",
        ("training.optimizer.momentum",),
        0.9,
        "pipeline.train.optimizer:make_optimizer",
        "Sutskever 2013",
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
        "weight_decay",
        "optimizer",
        ("training.optimizer.weight_decay",),
        5e-4,
        "pipeline.train.optimizer:make_optimizer",
        "He 2019 (Bag of Tricks), 3.1",
    ),
    Technique(
        "decay_vectors",
        "optimizer",
        ("training.optimizer.decay_vectors",),
        True,
        "pipeline.train.optimizer:make_optimizer",
        "He 2019 (Bag of Tricks), 3.1",
    ),
    Technique(
        "schedule",
        "optimizer",
        ("training.schedule",),
        {"name": "step"},
        "pipeline.train.schedule:lr_at",
        "He 2019 (Bag of Tricks), 2.1; Krizhevsky 2012, 5",
    ),
    Technique(
        "warmup",
        "optimizer",
        ("training.warmup_steps",),
        100,
        "pipeline.train.schedule:lr_at",
        "Goyal 2017, 2.2; He 2019 (Bag of Tricks), 3.1",
    ),
    Technique(
        "layer_decay",
        "optimizer",
        ("training.layer_decay",),
        0.75,
        "pipeline.models.layers:lr_scales",
        "Clark 2020 (ELECTRA), A.2; Bao 2021 (BEiT), 3.1",
    ),
    Technique(
        "head_lr",
        "optimizer",
        ("training.head_lr",),
        10.0,
        "pipeline.models.layers:lr_scales",
        "Girshick 2014, 2.3; Long 2015",
    ),
    Technique(
        "clip_norm",
        "update",
        ("training.clip_norm",),
        5.0,
        "pipeline.train.network:Network.clip",
        "Pascanu 2013, 3.2",
    ),
    Technique("ema", "update", ("training.ema_decay",), 0.99, "pipeline.train.ema:Ema", "Tarvainen 2017, 2"),
)
