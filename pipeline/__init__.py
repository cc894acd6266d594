"""selftrain: semi-supervised self-training of image classifiers (Noisy Student, Meta Pseudo Labels, UDA, FixMatch)."""

__version__ = "0.1.0"
