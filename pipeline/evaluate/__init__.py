"""The evaluation of models: accuracy with its interval, likelihood and calibration."""
