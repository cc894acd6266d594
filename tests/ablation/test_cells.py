"""The cells of ablations: which techniques are on in which run, and what is left out or refused before the first."""

from __future__ import annotations

import logging
import re

import pytest

from pipeline.ablation.cells import BASE, Mode, all_techniques, plan_cells
from pipeline.config import Config, Mixup, Training, changed, parse
from pipeline.errors import UserError
from pipeline.techniques import TECHNIQUES

THREE = ("dropout", "ema", "mixup")


@pytest.fixture
def propagating(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What is logged, whatever the command did to the loggers before."""
    monkeypatch.setattr(logging.getLogger("selftrain"), "propagate", True)
    return caplog


@pytest.fixture
def teacher_alone(digits: Config) -> Config:
    return changed(digits, rounds=changed(digits.rounds, num_rounds=0))


def on_in(config: Config, name: str) -> bool:
    row = TECHNIQUES[name]
    value = config.student
    for part in row.switch.split(".")[1:]:
        value = getattr(value, part)
    return value != row.off


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("alone", {BASE: "", "dropout": "dropout", "ema": "ema", "mixup": "mixup"}),
        (
            "drop-one",
            {BASE: "dropout ema mixup", "dropout": "ema mixup", "ema": "dropout mixup", "mixup": "dropout ema"},
        ),
        ("stack", {BASE: "", "dropout": "dropout", "ema": "dropout ema", "mixup": "dropout ema mixup"}),
    ],
)
def test_a_mode_says_which_techniques_are_on_in_which_cell(digits: Config, mode: str, expected: dict[str, str]) -> None:
    cells = plan_cells(digits, THREE, mode)  # type: ignore[arg-type]
    assert {cell.name: " ".join(cell.on) for cell in cells} == expected
    for cell in cells:
        assert [name for name in THREE if on_in(cell.config, name)] == list(cell.on)
    others = ["base", "dropout", "ema"] if mode == "stack" else [BASE] * 3
    assert [cell.against for cell in cells] == ["", *others]


def test_a_technique_that_the_config_has_on_keeps_its_settings(digits: Config) -> None:
    config = changed(digits, student=changed(digits.student, mixup=Mixup(alpha=0.9)))
    (_, cell) = plan_cells(config, ["mixup"], "alone")
    assert cell.config.student.mixup == Mixup(alpha=0.9)
    assert cell.config.teacher.mixup is None, "only the student has it in this config"
    (_, cell) = plan_cells(digits, ["mixup"], "alone")
    assert cell.config.student.mixup == cell.config.teacher.mixup == Mixup(alpha=0.2, probability=0.5)


def test_a_name_with_no_before_it_takes_the_technique_away(digits: Config) -> None:
    """So that "no bias decay" is a row of the stack of Bag of Tricks, whose base decays everything."""
    base, spared, smoothed = plan_cells(digits, ["no-decay_vectors", "label_smoothing"], "stack")
    assert [cell.config.student.optimizer.decay_vectors for cell in (base, spared, smoothed)] == [True, False, False]
    assert [cell.config.teacher.label_smoothing for cell in (base, spared, smoothed)] == [0, 0, 0.1]
    assert (spared.name, spared.on) == ("no-decay_vectors", ("no-decay_vectors",))
    with pytest.raises(UserError, match="names one twice"):
        plan_cells(digits, ["ema", "no-ema"], "alone")


def test_a_usual_value_may_follow_from_the_training(digits: Config) -> None:
    _, larger = plan_cells(digits, ["evaluation_size"], "alone")
    assert (digits.student.image_size, larger.config.student.evaluation_size) == (8, 10)


@pytest.mark.parametrize("name", [row.name for row in TECHNIQUES.values() if row.keys[0].startswith("training.")])
def test_each_technique_of_a_training_has_a_usual_value_unless_not_all_trainings_can_have_it(name: str) -> None:
    """A file, the names of modules, or an optimizer that has an eps."""
    of_some = ("start", "probe", "dropout_at", "eps")
    assert (TECHNIQUES[name].on is None) == (name in of_some)


@pytest.mark.parametrize("mode", ["alone", "drop-one", "stack"])
def test_all_techniques_fit_into_one_config(digits: Config, mode: Mode) -> None:
    """Cells are parsed, so that whatever two techniques cannot share shows before the first run."""
    names = all_techniques(digits)
    assert {"mixup", "cutmix"} <= set(names)
    idle = {"classical_momentum", "decay_vectors"} if mode == "alone" else set()
    assert [cell.name for cell in plan_cells(digits, names, mode)] == [BASE, *(n for n in names if n not in idle)]


def test_cells_differ_in_nothing_but_the_switches(digits: Config) -> None:
    base, *cells = plan_cells(digits, THREE, "alone")
    for cell in cells:
        switches = TECHNIQUES[cell.name].switch_in(digits)
        a, b = (flat(c.config.model_dump(mode="json")) for c in (base, cell))
        different = {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)}
        assert different
        assert all(any(f"{key}.".startswith(f"{switch}.") for switch in switches) for key in different)


def flat(value: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for name in value for k, v in flat(value[name], f"{prefix}.{name}".lstrip(".")).items()}


@pytest.mark.parametrize(
    ("techniques", "message"),
    [
        (["mixupp"], "there is no technique 'mixupp', did you mean `mixup`"),
        (["ema", "ema"], "names one twice"),
        (["start"], "off in this config, and has no usual value"),
    ],
)
def test_what_cannot_be_ablated_is_an_error_that_says_why(digits: Config, techniques: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_cells(digits, techniques, "alone")


def test_a_technique_that_the_method_does_not_read_is_an_error(digits: Config) -> None:
    uda = parse(Config, {"method": "uda", "data": digits.data.model_dump(mode="json")}, "test")
    with pytest.raises(UserError, match="technique balance is not read by `method: uda`"):
        plan_cells(uda, ["balance"], "alone")
    assert "balance" not in all_techniques(uda)
    assert "mixup" not in all_techniques(uda), "UDA's learner does not mix"
    assert {"ema", "dropout", "randaugment"} <= set(all_techniques(uda))


def test_what_no_training_of_the_run_reads_is_refused_with_what_to_set(teacher_alone: Config) -> None:
    """Else rows of techniques that were never exercised would say "within chance"."""
    one, two = (rf"in this config; set rounds\.num_rounds to {number} or more" for number in (1, 2))
    for name in ("balance", "threshold", "label_flip", "target_temperature"):
        with pytest.raises(UserError, match=f"{name} is not read {one}"):
            plan_cells(teacher_alone, [name], "alone")
    with pytest.raises(UserError, match=r"set teacher\.distillation\.model to a trained one, or set rounds\.num_"):
        plan_cells(teacher_alone, ["distillation"], "alone")
    once = changed(teacher_alone, rounds=changed(teacher_alone.rounds, num_rounds=1))
    with pytest.raises(UserError, match=f"label_ensemble is not read {two}"):
        plan_cells(once, ["label_ensemble"], "alone")


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        ("momentum", "classical_momentum", r"nothing reads student\.optimizer\.nesterov with momentum: 0"),
        ("weight_decay", "decay_vectors", r"nothing reads student\.optimizer\.decay_vectors with weight_decay: 0"),
    ],
)
def test_a_row_that_nothing_would_read_beside_the_others_is_left_out(
    digits: Config, propagating: pytest.LogCaptureFixture, first: str, second: str, why: str
) -> None:
    assert [cell.name for cell in plan_cells(digits, [first, second], "alone")] == [BASE, first]
    assert re.search(f"the row {second} is left out: .*{why}", propagating.text)
    assert [cell.name for cell in plan_cells(digits, [first, second], "stack")] == [BASE, first, second]
    assert [cell.name for cell in plan_cells(digits, [first, second], "drop-one")] == [BASE, first, second]
    backwards = plan_cells(digits, [second, first], "stack")
    assert [(cell.name, cell.against) for cell in backwards] == [(BASE, ""), (first, BASE)]
    plain = changed(digits.student.optimizer, momentum=0, weight_decay=0)
    both = {name: changed(getattr(digits, name), optimizer=plain) for name in ("teacher", "student")}
    with pytest.raises(UserError, match=f"{second} would change nothing: .*{why}"):
        plan_cells(changed(digits, **both), [second], "alone")


def test_a_technique_that_the_networks_cannot_have_is_left_out_before_the_first_run(
    digits: Config, propagating: pytest.LogCaptureFixture
) -> None:
    """`wide_resnet` pools by strides alone, and images that are read at the model's own size have one patch."""
    names = all_techniques(digits)
    assert not {"fractional_pooling", "evaluate_crops", "label_crops"} & set(names)
    assert "`fractional_pooling`: WideResNet has no max pooling" in propagating.text
    raw = {"model": "resnet9", "image_size": 32, "crop_pct": 0.875}
    teacher, student = (parse(Training, {"unlabeled_ratio": ratio, **raw}, "test") for ratio in (0, 4))
    names = all_techniques(changed(digits, teacher=teacher, student=student))
    assert {"fractional_pooling", "evaluate_crops", "label_crops"} <= set(names)
