"""The Prefect side of selftrain: flows, tasks, artifacts, and the console script."""
