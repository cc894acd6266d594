"""The rows of what a round does around its training: label, select, grow."""

from __future__ import annotations

from pipeline.techniques.technique import Technique

ROUNDS: tuple[Technique, ...] = (
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
        "ten",
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
    Technique("share", "select", ("select.share",), 0.5, "pipeline.selection.rules:select", "Cascante-Bonilla 2021, 3"),
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
)
