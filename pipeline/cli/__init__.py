"""The verbs of the `selftrain` command, except for `run` and `ablate`, which flows/cli.py adds to this app.

Heavy imports are inside the functions, because `selftrain --help` must be instant.
"""

from pipeline.cli import shards, intake, stages, join, models, predict, promote, inspect  # isort: skip - in the order in which the help shows the verbs
from pipeline.cli.app import AcceptOption, ConfigArgument, SetOption, app

__all__ = [
    "AcceptOption",
    "ConfigArgument",
    "SetOption",
    "app",
    "inspect",
    "intake",
    "join",
    "models",
    "predict",
    "promote",
    "shards",
    "stages",
]
