"""The artifacts of a run in the Prefect UI: what a person reads there. Each has a key of the run's own.

A display must never cost a training, so an error here becomes a warning, and the run goes on.
"""

from flows.artifacts.bar import StageBar
from flows.artifacts.display import never_fatal
from flows.artifacts.final_verdict import show_verdict
from flows.artifacts.keys import artifact_key
from flows.artifacts.leaderboard import show_rounds, show_table
from flows.artifacts.message import result_message
from flows.artifacts.pseudo_labels import show_selection

__all__ = [
    "StageBar",
    "artifact_key",
    "never_fatal",
    "result_message",
    "show_rounds",
    "show_selection",
    "show_table",
    "show_verdict",
]
