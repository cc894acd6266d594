"""Techniques that mix the images of a batch with each other."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.config.base import Section

MixingAlpha = Annotated[float, Field(ge=0.05, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]


class Mixup(Section):
    """mixup (Zhang 2018, eq. 1): each image becomes the weighted mean of itself and another image of its batch, and its
    target becomes the same mean of their targets."""

    alpha: MixingAlpha = 0.2
    """The weight is drawn from Beta(alpha, alpha). Larger values mix more: 0.2 is usual for photographs, 1 for small
    images."""
    probability: Share = 1.0
    """Share of the images that are mixed. Lower it if cutmix is on too: the two shares add up to at most 1."""


class Cutmix(Section):
    """CutMix (Yun 2019, eq. 1 and 2): a rectangle of each image is replaced by that of another image of its batch, and
    their targets are weighted by the areas."""

    alpha: MixingAlpha = 1.0
    """The share of the area that stays is drawn from Beta(alpha, alpha). At 1 all shares are equally likely."""
    probability: Share = 1.0
    """Share of the images that are mixed. Lower it if mixup is on too: the two shares add up to at most 1."""


class MaskedMixup(Section):
    """mixup of the unlabeled images of FixMatch, where both images of a pair have a sure label."""

    alpha: MixingAlpha = 0.5
    """The weight is drawn from Beta(alpha, alpha). Larger values mix more."""
