"""Views: weak and strong noise as batched device ops."""

from pipeline.views.randaugment import OPS, Levels, RandAugment, levels_at
from pipeline.views.views import Views

__all__ = ["OPS", "Levels", "RandAugment", "Views", "levels_at"]
