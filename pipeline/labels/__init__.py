"""Pseudo-labels, which a teacher says: its pass over the unlabeled images, and the label files that it fills."""
