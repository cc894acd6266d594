"""A synthetic run folder, written with the real writers: real images, invented answers."""

from support.run_folder import digits, finished_run, run, unfinished, unfinished_run

__all__ = ["digits", "finished_run", "run", "unfinished", "unfinished_run"]
