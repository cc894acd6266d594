"""The documented fragment of Bag of Tricks' baseline: it parses, and a training takes a step by it."""

from __future__ import annotations

import re
from pathlib import Path

import torch
import yaml
from support.command import ROOT
from support.learners import learner_of
from support.processes import train_job

from pipeline.config import Config, Training, parse


def test_a_training_takes_a_step_by_the_documented_baseline(digits: Config, tmp_path: Path) -> None:
    """At 8 pixels, because digits have no more; what the model sees are other images than without color noise."""
    text = (ROOT / "docs/augmentation.md").read_text()
    (block,) = re.findall(r"```yaml\n(image_size: 224\n.*?)```", text, re.DOTALL)
    asked = parse(Training, yaml.safe_load(block), "docs/augmentation.md")
    assert (asked.weak.min_area, asked.weak.pca_color, asked.crop_pct) == (0.08, 0.1, 0.875)
    raw = {**digits.teacher.model_dump(mode="json"), **yaml.safe_load(block), "image_size": 8}
    plain = {**raw, "weak": {**raw["weak"], "color_jitter": None, "pca_color": 0}}
    learner, other = (
        learner_of(train_job(digits, tmp_path, training=parse(Training, given, "test"))) for given in (raw, plain)
    )
    batch = next(iter(learner.batches.from_step(0, 1)))
    views = [one.setup.views().strong_uint8(batch.images, batch.positions) for one in (learner, other)]
    noise = (views[0].float() - views[1].float()).abs().mean((1, 2, 3))
    assert (noise > 1).float().mean() > 0.9
    before = [p.detach().clone() for p in learner.model.raw_model.parameters()]
    learner.update(3, [batch])
    assert not all(map(torch.equal, before, learner.model.raw_model.parameters()))
