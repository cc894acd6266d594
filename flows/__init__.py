"""Prefect around the pipeline: flows, tasks, artifacts, and the console script."""
