"""The views of images: weak and strong noise, made by batched ops on the device. Resized crops are cut before that."""

from pipeline.views.crops import ResizedCrops
from pipeline.views.randaugment import OPS, Levels, RandAugment, levels_at
from pipeline.views.views import Views

__all__ = ["OPS", "Levels", "RandAugment", "ResizedCrops", "Views", "levels_at"]
