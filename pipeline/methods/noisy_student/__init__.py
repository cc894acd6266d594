"""Noisy Student (Xie 2020): rounds of label, select and train."""
