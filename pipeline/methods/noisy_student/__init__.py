"""Noisy Student (Xie 2020) repeats rounds of label, select and train."""
