"""The figures per class are those of scikit-learn, and classes without images are in no mean."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from sklearn import metrics as oracle

from pipeline.cli.class_table import class_table, notes
from pipeline.evaluate.metrics import Metrics, MetricsJson, compute_metrics
from pipeline.evaluate.on_demand import Evaluation
from pipeline.evaluate.per_class import confusion_matrix, per_class, taken_for
from pipeline.evaluate.predictions import Predictions
from pipeline.files import write_json
from pipeline.report.confusion import draw_confusion
from pipeline.stages.folder import read_output


@st.composite
def some_answers(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Labels and answers of 1 to 8 classes, some of which may have no images, or no answers."""
    num_classes, n = draw(st.integers(1, 8)), draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    label, pred = (rng.choice(num_classes, n, p=rng.dirichlet(np.full(num_classes, 0.4))) for _ in range(2))
    return label, np.where(rng.random(n) < 0.5, label, pred), num_classes


@given(some_answers())
def test_the_figures_are_those_of_scikit_learn(answers: tuple[np.ndarray, np.ndarray, int]) -> None:
    label, pred, num_classes = answers
    found, present = per_class(label, pred, num_classes), np.unique(label)
    precision, recall, f1, support = oracle.precision_recall_fscore_support(
        label, pred, labels=np.arange(num_classes), zero_division=np.nan
    )
    np.testing.assert_array_equal(found.count, support)
    np.testing.assert_allclose(found.precision, precision)
    np.testing.assert_allclose(found.recall, recall)
    np.testing.assert_allclose(found.f1[present], f1[present])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of answers without images, and of a single class
        assert found.balanced_accuracy == pytest.approx(oracle.balanced_accuracy_score(label, pred))
        expected = oracle.confusion_matrix(label, pred, labels=np.arange(num_classes))
    assert found.macro_f1 == pytest.approx(oracle.f1_score(label, pred, labels=present, average="macro"))
    matrix = confusion_matrix(label, pred, num_classes)
    np.testing.assert_array_equal(matrix, expected)
    for c in range(num_classes):
        wrong = {other: n for other, n in enumerate(matrix[c].tolist()) if n and other != c}
        assert taken_for(label, pred, c) == wrong
        assert list(taken_for(label, pred, c).values()) == sorted(wrong.values(), reverse=True)


def test_metrics_hold_both_figures_and_plain_accuracy_hides_what_they_show() -> None:
    label = np.array([0] * 98 + [1] * 2, np.int32)
    log_probs = np.log(np.tile(np.float32([0.9, 0.1]), (100, 1)))  # the second class is lost
    found = compute_metrics(log_probs, label)
    assert (found.top1, found.balanced_accuracy) == (0.98, 0.5)
    assert found.macro_f1 == pytest.approx((2 * 98 / 198 + 0) / 2)


def test_files_of_earlier_versions_stay_readable(tmp_path: Path) -> None:
    """Their figures per class follow from the answers: tests/report/test_record.py."""
    earlier = {"top1": 0.5, "top5": 1.0, "nll": 0.7, "ece": 0.1, "num_samples": 4, "interval": [0.1, 0.9]}
    write_json(tmp_path / "evaluation-val.json", earlier)
    found = Metrics.from_json(read_output(tmp_path / "evaluation-val.json", MetricsJson))
    assert (found.balanced_accuracy, found.macro_f1) == (None, None)
    assert found.to_json() == earlier


# ------------------------------------------------------------------------------------------------------- what is shown


def evaluation(label: np.ndarray, pred: np.ndarray, classes: tuple[str, ...]) -> Evaluation:
    log_probs = np.log(np.full((len(label), len(classes)), 0.01, np.float32))
    log_probs[np.arange(len(pred)), pred] = -0.1
    answers = Predictions(label.astype(np.int32), pred.astype(np.int32), np.ones(len(label), np.float32))
    return Evaluation(compute_metrics(log_probs, label.astype(np.int32)), answers, classes)


def printed(found: Evaluation) -> str:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(class_table(found))
        for line in notes(found):
            console.print(line)
    return " ".join(capture.get().split())


def test_the_least_recognized_classes_come_first_with_what_they_are_taken_for() -> None:
    label = np.repeat([0, 1, 2], [8, 2, 4])
    pred = np.array([0] * 8 + [0, 2] + [2] * 3 + [0])
    text = printed(evaluation(label, pred, ("cat", "dog", "[emu]", "fox")))
    assert text.index("dog") < text.index("[emu]") < text.index("0.800")
    assert "cat (1), [emu] (1)" in text
    assert "1 of 4 classes have no images; balanced_accuracy and macro_f1 leave them out." in text
    assert "The classes are uneven (2 to 8 images)" in text


def test_a_hundred_classes_fit_into_80_columns_and_even_ones_are_not_called_uneven() -> None:
    label = np.repeat(np.arange(100), 3)
    text = printed(evaluation(label, np.roll(label, 1), tuple(f"a class of a long name {i}" for i in range(100))))
    assert "the 20 of 100 classes with the lowest recall" in text
    assert "uneven" not in text


def test_the_json_has_each_class_and_its_row_of_the_confusion_matrix() -> None:
    label, pred = np.array([0, 0, 0, 1]), np.array([0, 1, 1, 1])
    found = evaluation(label, pred, ("cat", "dog", "emu")).to_json()
    cat, dog, emu = found["classes"]
    assert (cat["right"], cat["taken_for"], cat["recall"], cat["precision"]) == (1, {"dog": 2}, 1 / 3, 1.0)
    assert (dog["num_samples"], dog["f1"]) == (1, 0.5)
    assert (emu["num_samples"], emu["recall"], emu["precision"]) == (0, None, None)
    assert found["balanced_accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("num_classes", [1, 10, 100])
def test_the_confusion_matrix_can_be_drawn(num_classes: int) -> None:
    matrix = np.eye(num_classes, dtype=np.int64) * 5
    matrix[0, -1] = 0  # a class without any image, where there is one class
    with Image.open(io.BytesIO(draw_confusion(matrix, [f"$c{i}" for i in range(num_classes)]))) as image:
        assert 500 < image.width < 1000
