"""The report says why its table of test has no row of a probe."""

from __future__ import annotations

from pathlib import Path

from support.run_folder import text_of

from pipeline.config import Probe, Start, dump_yaml
from pipeline.report.record import read_run


def test_a_table_without_a_probe_says_why(run: Path) -> None:
    """A run from scratch, as `init --encoder none` writes one; one that wants none; a start that no probe can see."""
    begin = "There is no row of a probe on a frozen encoder: "
    assert f"{begin}no training starts from pretrained weights" in text_of(run)
    config = read_run(run).config

    def page_with(**sections: object) -> str:
        (run / "config.yaml").write_text(dump_yaml(config.model_copy(update=sections)))
        return text_of(run)

    assert f"{begin}evaluate.probe is false." in page_with(evaluate=config.evaluate.model_copy(update={"probe": False}))
    start = Start(model="timm:resnet18.a1_in1k", mode="init")
    student = config.student.model_copy(update={"start": start})
    assert f"{begin}none could be fitted on timm:resnet18.a1_in1k; the log" in page_with(student=student)
    probed = config.teacher.model_copy(update={"start": start, "probe": Probe()})
    assert begin not in page_with(teacher=probed), "the teacher is one"
