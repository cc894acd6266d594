"""The rows of what is done to images before a network sees them: their views, and their batches."""

from __future__ import annotations

from pipeline.techniques.technique import Technique

VIEWS: tuple[Technique, ...] = (
    Technique(
        "crop",
        "view",
        (
            *("training.weak.crop", "training.weak.padding", "training.weak.min_area"),
            *("training.weak.min_scale", "training.weak.max_scale"),
        ),
        "pad",
        "pipeline.views.views:Views.weak",
        "Krizhevsky 2012, 4.1; Szegedy 2015, 6; Simonyan 2015, 3.1",
    ),
    Technique("flip", "view", ("training.weak.flip",), True, "pipeline.views.views:Views.weak", "Krizhevsky 2012, 4.1"),
    Technique(
        "color_jitter",
        "view",
        ("training.weak.color_jitter",),
        {},
        "pipeline.views.jitter:ColorNoise",
        "He 2019 (Bag of Tricks), 2.1",
    ),
    Technique(
        "pca_color",
        "view",
        ("training.weak.pca_color",),
        0.1,
        "pipeline.views.jitter:ColorNoise",
        "Krizhevsky 2012, 4.1; He 2019 (Bag of Tricks), 2.1",
    ),
    Technique(
        "preprocessing",
        "view",
        ("training.preprocessing",),
        "mean_std",
        "pipeline.views.statistics:measure",
        "Krizhevsky 2012, 2; Simonyan 2015, 2.1; Krizhevsky 2009, A",
    ),
    Technique(
        "randaugment",
        "view",
        ("training.strong.num_ops", "training.strong.magnitude", "training.noise_labeled"),
        2,
        "pipeline.views.randaugment:RandAugment",
        "Cubuk 2020; Xie 2020, 3.1",
    ),
    Technique(
        "cutout", "view", ("training.strong.cutout",), 16, "pipeline.views.geometry:cut_out", "DeVries 2017, 3.2"
    ),
    Technique(
        "mixup",
        "batch",
        ("training.mixup",),
        {"alpha": 0.2, "probability": 0.5},
        "pipeline.train.mixing:mix",
        "Zhang 2018, eq. 1; He 2019 (Bag of Tricks), 5.4",
    ),
    Technique(
        "cutmix",
        "batch",
        ("training.cutmix",),
        {"alpha": 1.0, "probability": 0.5},
        "pipeline.train.mixing:cut",
        "Yun 2019, eq. 1 and 2",
    ),
    Technique(
        "balance_labeled",
        "batch",
        ("training.balance_labeled",),
        10,
        "pipeline.train.class_sizes:balanced_copies",
        "Shen 2016, 3.2; Kang 2020, 3",
    ),
)
