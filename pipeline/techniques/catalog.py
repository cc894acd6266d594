"""The table of techniques: one row per refinement; it is long because it is one table.

Tests hold it in both directions: each row has keys, code and a card, and each semantic key of a training, a labeling or
a selection belongs to a row or to PLUMBING.
"""

from __future__ import annotations

import math

from pipeline.config.base import is_technique
from pipeline.errors import UserError
from pipeline.techniques.optimization import OPTIMIZATION
from pipeline.techniques.technique import Technique, field_of

TECHNIQUES: dict[str, Technique] = {
    row.name: row
    for row in (
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
        Technique(
            "flip", "view", ("training.weak.flip",), True, "pipeline.views.views:Views.weak", "Krizhevsky 2012, 4.1"
        ),
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
        Technique(
            "activation",
            "network",
            ("training.activation",),
            "relu",
            "pipeline.models.activations:with_activation",
            "Krizhevsky 2012, 3.1; He 2015, 2.1; CS231n, training neural networks",
        ),
        Technique(
            "dropout", "network", ("training.dropout",), 0.2, "pipeline.models.registry:build", "Srivastava 2014"
        ),
        Technique(
            "block_dropout",
            "network",
            ("training.block_dropout",),
            0.3,
            "pipeline.models.dropping:drop_in_blocks",
            "Zagoruyko 2016, 2.4",
        ),
        Technique(
            "dropout_at",
            "network",
            ("training.dropout_at",),
            None,
            "pipeline.models.dropping:drop_at",
            "Srivastava 2014; CS231n, training neural networks",
        ),
        Technique(
            "drop_connect",
            "network",
            ("training.drop_connect",),
            0.5,
            "pipeline.models.dropping:DropConnect",
            "Wan 2013, 3.1",
        ),
        Technique(
            "fractional_pooling",
            "network",
            ("training.fractional_pooling",),
            None,
            "pipeline.models.pooling:FractionalMaxPool",
            "Graham 2014, 2",
        ),
        Technique(
            "stochastic_depth",
            "network",
            ("training.stochastic_depth",),
            0.1,
            "pipeline.models.registry:build",
            "Huang 2016, 3",
        ),
        Technique(
            "frozen_layers",
            "network",
            ("training.frozen_layers",),
            1,
            "pipeline.models.layers:set_trainable",
            "Xie 2020, 3.1",
        ),
        Technique(
            "freeze_norm",
            "network",
            ("training.freeze_norm",),
            True,
            "pipeline.models.layers:set_trainable",
            "He 2016, A; Ren 2017",
        ),
        Technique(
            "thaw_steps",
            "network",
            ("training.thaw_steps",),
            100,
            "pipeline.train.network:Network.train_mode",
            "Howard 2018 (ULMFiT), 3.3; Kumar 2022 (LP-FT), 4",
        ),
        Technique(
            "start",
            "init",
            ("training.start",),
            None,
            "pipeline.models.weights:load_start",
            "Girshick 2014; Touvron 2019",
        ),
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
            "momentum",
            "optimizer",
            ("training.optimizer.momentum",),
            0.9,
            "pipeline.train.optimizer:make_optimizer",
            "Sutskever 2013",
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
        Technique(
            "early_stop",
            "evaluate",
            ("training.early_stop",),
            3,
            "pipeline.train.loop:Loop.has_stalled",
            "Prechelt 1998, 2",
        ),
        Technique(
            "target_temperature",
            "target",
            ("training.target_temperature", "training.targets"),
            0.5,
            "pipeline.selection.targets:sharpen",
            "Xie 2020, 2 and 4.3; Hinton 2015",
        ),
        Technique(
            "probe",
            "network",
            ("training.probe",),
            None,
            "pipeline.probe.logistic:fit_path",
            "Oquab 2024, 7.1; Radford 2021, A.3",
        ),
        Technique(
            "label_flip",
            "label",
            ("label.flip",),
            True,
            "pipeline.evaluate.predictor:Predictor.logits",
            "Simonyan 2015, 3.2",
        ),
        Technique(
            "label_crops",
            "label",
            ("label.crops", "label.scales"),
            None,
            "pipeline.evaluate.patches:cut",
            "Krizhevsky 2012, 4.1",
        ),
        Technique(
            "label_ensemble",
            "label",
            ("label.ensemble",),
            2,
            "pipeline.evaluate.predictor:mean_logits",
            "Krizhevsky 2012, 6",
        ),
        Technique(
            "label_merge",
            "label",
            ("label.others",),
            None,
            "pipeline.labels.merging:run_merge",
            "Hinton 2015, 3; V-PET 2025",
        ),
        Technique(
            "label_temperature",
            "label",
            ("label.temperature",),
            "auto",
            "pipeline.evaluate.calibration:fit_temperature",
            "Guo 2017, 4.2",
        ),
        Technique("threshold", "select", ("select.threshold",), 0.3, "pipeline.selection.rules:select", "Xie 2020, 2"),
        Technique(
            "share", "select", ("select.share",), 0.5, "pipeline.selection.rules:select", "Cascante-Bonilla 2021, 3"
        ),
        Technique("per_class", "select", ("select.per_class",), 100, "pipeline.selection.rules:select", "Xie 2020, 2"),
        Technique(
            "align",
            "select",
            ("select.align",),
            True,
            "pipeline.selection.alignment:alignment",
            "Berthelot 2020 (ReMixMatch), 3.1",
        ),
        Technique(
            "balance",
            "select",
            ("select.balance", "select.prior", "select.max_copies"),
            "uniform",
            "pipeline.selection.rules:select",
            "Xie 2020, 2",
        ),
        Technique(
            "grow",
            "rounds",
            ("rounds.grow", "rounds.grow_image_size"),
            1.0,
            "pipeline.config.growth:grown",
            "Xie 2020, 2 and 3.1; Tan 2019, eq. 3",
        ),
        Technique(
            "evaluation_size",
            "evaluate",
            ("training.evaluation_size",),
            lambda training: 2 * math.ceil(1.15 * training.image_size / 2),
            "pipeline.models.format:ModelInfo",
            "Touvron 2019, 3 and 4",
        ),
        Technique(
            "evaluate_flip",
            "evaluate",
            ("evaluate.flip",),
            True,
            "pipeline.evaluate.predictor:Predictor.logits",
            "Simonyan 2015, 3.2",
        ),
        *OPTIMIZATION,
        Technique(
            "evaluate_ensemble",
            "evaluate",
            ("evaluate.ensemble",),
            None,  # it changes no figure that ablations compare
            "pipeline.evaluate.ensemble:mean_log_probs",
            "Krizhevsky 2012, 6 and tables 1 and 2",
        ),
        Technique(
            "mc_dropout",
            "evaluate",
            ("evaluate.mc_dropout",),
            None,  # as above
            "pipeline.models.mc_dropout:sample_logits",
            "Gal and Ghahramani 2016, 4; Srivastava 2014, 7.5",
        ),
        Technique(
            "evaluate_crops",
            "evaluate",
            ("evaluate.crops",),
            None,
            "pipeline.evaluate.patches:cut",
            "Krizhevsky 2012, 4.1",
        ),
        Technique(
            "evaluate_scales",
            "evaluate",
            ("evaluate.scales",),
            [1.0, 1.143],
            "pipeline.evaluate.patches:reader_at",
            "Simonyan 2015, 3.2; He 2016, 3.4",
        ),
        Technique(
            "preprocessing",
            "view",
            ("training.preprocessing",),
            "mean_std",
            "pipeline.views.statistics:measure",
            "Krizhevsky 2012, 2; Simonyan 2015, 2.1; Krizhevsky 2009, A",
        ),
    )
}
"""Name -> row."""

PLUMBING = frozenset(
    {
        *("training.model", "training.model_args", "training.image_size", "training.mean", "training.std"),
        *("training.crop_pct", "training.crop_mode", "training.interpolation"),
        *("training.steps", "training.batch_size", "training.unlabeled_ratio", "training.accumulation"),
        *("training.loss_normalization", "training.keep", "training.evaluations"),
        *("training.optimizer.name", "training.optimizer.lr", "training.optimizer.lr_batch_size"),
        *("label.batch_size", "label.top_k", "select.allow_empty_classes"),
    }
)
"""Semantic keys that belong to no technique: sizes, lengths, rates and names, which every training has."""


def register_technique(row: Technique) -> None:
    """Make a technique known to documentation, tests and ablations. The method that reads its keys comes first.

    Raises:
        UserError: its name or a key is taken, a key does not exist, or the first one has no value that turns it off.
    """
    if row.name in TECHNIQUES:
        raise UserError(f"there is a technique {row.name!r} already; choose another name")
    owners = {key: other.name for other in TECHNIQUES.values() for key in other.keys}
    for key in row.keys:
        if key in owners:
            raise UserError(f"technique {row.name}: its key `{key}` is that of {owners[key]}; choose another key")
        field_of(key)
    if not is_technique(field_of(row.switch)):
        raise UserError(f"technique {row.name}: nothing turns `{row.switch}` off; declare its field by technique()")
    TECHNIQUES[row.name] = row
