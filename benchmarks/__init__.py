"""Measurements, each side by side with what it is measured against. `python -m benchmarks gpu` is the one for a GPU."""
