"""Label stages of invented teachers, on packed digits."""

from support.labeled_digits import data, logits, unlabeled, write_stage

__all__ = ["data", "logits", "unlabeled", "write_stage"]
