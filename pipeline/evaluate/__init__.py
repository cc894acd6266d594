"""Evaluate models: accuracy with intervals, calibration."""
