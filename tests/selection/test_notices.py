"""What a selection's summary warns of, by name."""

from __future__ import annotations

from pipeline.config import Select
from pipeline.selection.stage import notices_of_calibration
from pipeline.selection.summary import Summary


def test_a_number_that_is_held_against_unmeasured_confidences_is_a_named_warning() -> None:
    """`label.temperature: auto` measures them; an adaptive threshold follows them, whatever they are worth."""
    unmeasured: Summary = {}  # type: ignore[typeddict-item]
    (notice,) = notices_of_calibration(unmeasured, Select(threshold=0.5))
    assert notice["name"] == "confidences-not-calibrated"
    assert "label.temperature: auto fits a temperature on val and measures it" in notice["text"]
    for other in (Select(), Select(threshold="adaptive"), Select(share=0.5)):
        assert not notices_of_calibration(unmeasured, other)
    on_val = {"top1": 0.9, "ece": 0.02, "num_samples": 100, "teachers_top1": [0.9]}
    measured: Summary = {"on_val": on_val}  # type: ignore[typeddict-item]
    assert not notices_of_calibration(measured, Select(threshold=0.5))
