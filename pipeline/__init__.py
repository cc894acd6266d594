"""selftrain: semi-supervised self-training of image classifiers (Noisy Student, Meta Pseudo Labels)."""

__version__ = "0.1.0"
