"""Techniques that mix the images of a batch with each other."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.config.base import Section

MixingAlpha = Annotated[float, Field(ge=0.05, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]


class Mixup(Section):
    """mixup: each image becomes a weighted mean of itself and another one of its batch, and so does its target (Zhang
    2018, eq. 1)."""

    alpha: MixingAlpha = 0.2
    """The weight is drawn from Beta(alpha, alpha). Larger values mix more; 0.2 is usual for photographs, 1 for small
    images."""
    probability: Share = 1.0
    """Share of the images that are mixed. Lower it where cutmix is on too."""


class Cutmix(Section):
    """CutMix: a rectangle of each image is replaced by that of another one of its batch, and targets are weighted by
    the areas (Yun 2019, eq. 1 and 2)."""

    alpha: MixingAlpha = 1.0
    """The share of the area that stays is drawn from Beta(alpha, alpha)."""
    probability: Share = 1.0
    """Share of the images that are mixed. Lower it where mixup is on too."""
