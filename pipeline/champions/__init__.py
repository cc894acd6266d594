"""Registries of champions: which model is in use, which ones were, and why."""
