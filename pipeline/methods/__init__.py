"""The algorithms: what a run does between its data and its result."""

from pipeline.methods.meta import meta_pseudo_labels, uda
from pipeline.methods.noisy_student import noisy_student

METHODS = {"noisy_student": noisy_student, "meta": meta_pseudo_labels, "uda": uda}
"""`method` of the config -> its rounds."""

__all__ = ["METHODS"]
