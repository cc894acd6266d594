"""The result of a run in one line, which is the message of its final state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.report.page import percent, points


def result_message(result: Mapping[str, Any]) -> str:
    """What result.json says, such as `test 97.1% (95.6 to 98.1), +2.7 over the teacher, +1.2 over the control`.

    Accuracies are those on test, with their 95% intervals. Where test was not measured, it is that on val, and says so.
    """
    final = result["final"]
    test = final.get("test_top1")
    if test is None:
        interval = next((r.get("interval") for r in result["rounds"] if r["round"] == final["round"]), None)
        return f"val {_figure(final['val_top1'], interval)}; test was not measured"
    said = f"test {_figure(test, final.get('test', {}).get('final', {}).get('interval'))}"
    students = [entry for entry in result["rounds"] if entry["role"] == "student"]
    if students and final["round"] == 0:
        return f"{said}, of the teacher, which no student beat"
    found = {name: final.get(f"{name}_test_top1") for name in ("teacher", "control", "probe")}
    leads = [
        f"{points(test - top1)} over the {name}"
        for name, top1 in found.items()
        if top1 is not None and (name != "teacher" or final["round"] > 0)
    ]
    return ", ".join([said, *leads])


def _figure(top1: float, interval: Any) -> str:
    between = f" ({percent(interval[0])[:-1]} to {percent(interval[1])[:-1]})" if interval else ""
    return f"{percent(top1)}{between}"
