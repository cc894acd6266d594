"""The views of images: weak and strong noise, made by batched ops on the device."""

from pipeline.views.randaugment import OPS, Levels, RandAugment, levels_at
from pipeline.views.views import Views

__all__ = ["OPS", "Levels", "RandAugment", "Views", "levels_at"]
