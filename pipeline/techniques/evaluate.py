"""The rows of how models are evaluated, while they are trained and after."""

from __future__ import annotations

import math

from pipeline.techniques.technique import Technique

EVALUATE: tuple[Technique, ...] = (
    Technique(
        "early_stop",
        "evaluate",
        ("training.early_stop",),
        3,
        "pipeline.train.loop:Loop.has_stalled",
        "Prechelt 1998, 2",
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
    Technique(
        "evaluate_crops",
        "evaluate",
        ("evaluate.crops",),
        "ten",
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
)
