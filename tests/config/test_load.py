"""The config: precedence, keys that a method does not read, sections of methods from outside."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError
from support.configs import write

import pipeline.config
from pipeline.config import (
    Config,
    NetworkSettings,
    Section,
    Training,
    Uda,
    changed,
    dump_yaml,
    load,
    load_config,
    parse,
    semantic,
    unread_beside,
    unread_keys,
)
from pipeline.config.methods import METHOD_CONFIGS, MethodConfig
from pipeline.config.unread import is_read, settings_of
from pipeline.demos.moons.config import TwoMoons
from pipeline.errors import UserError

ROOT = Path(pipeline.config.__file__).parents[2]
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))


def section_of(recipe: Path) -> type[Section]:
    return TwoMoons if recipe.stem == "two_moons" else Config


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_parses_and_says_what_to_expect(path: Path) -> None:
    load(section_of(path), path)
    header = " ".join(line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#"))
    expected = header[header.index("Expected") :]
    assert re.search(r"\d\d(\.\d)?%|of \d+ seeds", expected), "a figure"
    assert "minute" in expected, "a time"
    assert re.search(r"CPU|GPU|core", header), "the hardware"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_resolved_config_reads_back_as_itself(path: Path, tmp_path: Path) -> None:
    config = load(section_of(path), path)
    again = load(section_of(path), write(tmp_path, dump_yaml(config)))
    assert again == config
    assert dump_yaml(again) == dump_yaml(config)
    assert semantic(again) == semantic(config)


def test_set_beats_the_file_which_beats_the_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, "teacher: {steps: 7, batch_size: 9}")
    config = load_config(path, ["teacher.steps=8", "select.threshold=0.5", "teacher.optimizer.lr=1e-2"])
    assert config.teacher.steps == 8
    assert config.teacher.batch_size == 9
    assert config.teacher.image_size == Training().image_size
    assert config.select.threshold == 0.5
    assert config.teacher.optimizer.lr == 0.01


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "")) == Config()


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("student: {steps: 5}", "student.unlabeled_ratio", 4.0),
        ("method: meta\nstudent: {steps: 500}", "student.unlabeled_ratio", 7.0),
        ("meta: {adjuster: {optimizer: {lr: 3.0e-4}}}", "meta.adjuster.optimizer.name", "adamw"),
        ("finetune: {image_size: 64, optimizer: {weight_decay: 0.0}}", "finetune.optimizer.lr", 0.01),
    ],
)
def test_a_section_that_is_given_in_part_keeps_its_other_defaults(
    tmp_path: Path, text: str, key: str, value: object
) -> None:
    found = load_config(write(tmp_path, text)).model_dump()
    for part in key.split("."):
        found = found[part]
    assert found == value


def test_a_section_of_the_two_moons_that_is_given_in_part_keeps_its_other_defaults(tmp_path: Path) -> None:
    found = load(TwoMoons, write(tmp_path, "uda: {weight: 2.0}")).uda
    assert (found.weight, found.ramp_steps, Uda().ramp_steps) == (2.0, 0, 5000)


def test_what_is_off_may_stay_beside_what_would_ignore_it(tmp_path: Path) -> None:
    load_config(write(tmp_path, "teacher: {noise_labeled: false}"))
    load_config(write(tmp_path, "teacher: {noise_labeled: false, strong: {num_ops: 0}}"))
    load_config(write(tmp_path, "student: {unlabeled_ratio: 4, noise_labeled: false, strong: {cutout: 4}}"))
    load_config(write(tmp_path, "select: {balance: prior, prior: [0.5, 0.5]}"))
    load_config(write(tmp_path, "student: {targets: soft, target_temperature: 0.5}"))
    load_config(write(tmp_path, "student: {targets: hard, target_temperature: 1.0}"))


SMALL = "start: {model: a.safetensors}, probe: {}"


@pytest.mark.parametrize(
    ("text", "unread"),
    [
        ("teacher: {steps: 5}", []),
        ("teacher: {targets: hard}", ["teacher.targets"]),
        ("uda: {weight: 2}", ["uda.weight"]),
        ("method: meta\nselect: {threshold: 0.5}\nlabel: {flip: true}", ["label.flip", "select.threshold"]),
        ("method: meta\nmeta: {teacher: adjuster}\nlabel: {flip: true}", []),
        ("method: uda\nstudent: {steps: 5, optimizer: {lr: 1.0}}", []),
        ("method: uda\nteacher: {steps: 5, optimizer: {lr: 1.0}}", ["teacher.optimizer.lr", "teacher.steps"]),
        ("method: uda\nstudent: {targets: hard}", ["student.targets"]),
        ("method: uda\nrounds: {judge_by: macro_f1, patience: 2}", ["rounds.patience"]),
        ("method: meta\nrounds: {judge_by: macro_f1}", []),
        (
            "method: uda\nmeta: {feedback: off, scale: 2.0, student_wait: 9999}\nuda: {weight: 2}",
            ["meta.scale", "meta.student_wait", "meta.feedback"],
        ),
        ("method: meta\nteacher: {steps: 5, optimizer: {lr: 1.0}}", ["teacher.steps"]),
        ("method: meta\nmeta: {teacher: adjuster}\nteacher: {steps: 5, optimizer: {lr: 1.0}}", []),
        ("method: meta\nmeta: {adjuster: {hidden: 9}, scale: 2.0}", ["meta.adjuster.hidden"]),
        ("method: meta\nuda: {weight: 2}\nmeta: {teacher: adjuster, adjuster: {hidden: 9}}", ["uda.weight"]),
        ("method: meta\nmeta: {feedback: off, scale: 2.0, label_temperature: 0.5}", ["meta.scale"]),
        ("rounds: {num_rounds: 0, judge_by: macro_f1}\nselect: {share: 0.5}", ["select.share"]),
        ("rounds: {num_rounds: 0, patience: 2}\nstudent: {steps: 5}", ["student.steps", "rounds.patience"]),
        (f"rounds: {{num_rounds: 0, on_features: 1}}\nteacher: {{{SMALL}, targets: hard}}\nselect: {{share: 0.5}}", []),
        ("rounds: {num_rounds: 1}\nlabel: {ensemble: 2}\nselect: {share: 0.5}", ["label.ensemble"]),
        ("rounds: {num_rounds: 2}\nlabel: {ensemble: 2}", []),
    ],
)
def test_keys_that_a_method_does_not_read_are_known(tmp_path: Path, text: str, unread: list[str]) -> None:
    assert unread_keys(load_config(write(tmp_path, text))) == unread


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("student: {weak: {min_area: 0.08, padding: 2}}", ["student.weak.min_area without crop: resized"]),
        (
            "student: {weak: {crop: scale, min_area: 0.5, max_scale: 3}}",
            ["student.weak.min_area without crop: resized"],
        ),
        ("teacher: {weak: {crop: none, padding: 8}}", ["teacher.weak.padding without crop: pad"]),
        (
            "student: {weak: {min_scale: 1.2, max_scale: 3}}",
            ["student.weak.min_scale, student.weak.max_scale without crop: scale"],
        ),
        ("student: {strong: {num_ops: 0, magnitude: 4}}", ["student.strong.magnitude with num_ops: 0"]),
        ("student: {optimizer: {momentum: 0, nesterov: false}}", ["student.optimizer.nesterov with momentum: 0"]),
        (
            "student: {optimizer: {weight_decay: 0, decay_vectors: true}}",
            ["student.optimizer.decay_vectors with weight_decay: 0"],
        ),
        ("student: {distillation: {weight: 0, temperature: 2}}", ["student.distillation.temperature with weight: 0"]),
        ("method: uda\nuda: {weight: 0, ramp_steps: 9}", ["uda.ramp_steps with weight: 0"]),
        ("uda: {weight: 0, ramp_steps: 9}", []),
        ("select: {balance: off, max_copies: 3}", ["select.max_copies with balance: off"]),
        (
            f"teacher: {{{SMALL}, steps: 9, image_size: 64, weak: {{flip: false, crop: none}}}}",
            ["teacher.steps, teacher.weak.crop of a probe"],
        ),
        (
            f"teacher: {{{SMALL}}}\ncommittee: [{{{SMALL}, batch_size: 9}}, {{{SMALL}}}]",
            ["committee.0.batch_size of a probe"],
        ),
        # What one round reads is read, whatever the others say.
        ("student: {weak: {padding: 8}}\nrounds: {overrides: [{student.weak.crop: none}, {}]}", []),
        (
            "rounds: {overrides: [{}, {student.weak.padding: 8, student.weak.crop: none}]}",
            ["student.weak.padding without crop: pad"],
        ),
    ],
)
def test_keys_that_nothing_reads_beside_another_are_known(tmp_path: Path, text: str, told: list[str]) -> None:
    config = load_config(write(tmp_path, text))
    assert unread_beside(config) == [f"nothing reads {each}" for each in told]
    assert unread_beside(load_config(write(tmp_path, dump_yaml(config)))) == unread_beside(config)


@pytest.mark.parametrize("path", [path for path in RECIPES if section_of(path) is Config], ids=lambda path: path.stem)
def test_no_recipe_says_what_nothing_reads(path: Path) -> None:
    assert unread_beside(load_config(path)) == []


def test_a_method_without_rounds_reads_the_figure_that_judges_and_nothing_else_of_them() -> None:
    assert is_read("uda", "rounds.judge_by")
    assert not is_read("uda", "rounds.patience")
    assert not is_read("uda", "rounds"), "a section of which it reads a key is not proposed"


def test_a_section_that_the_learner_does_not_read_is_no_part_of_its_settings(tmp_path: Path) -> None:
    """So that changing it repeats nothing."""
    text = "method: meta\nmeta: {{teacher: adjuster}}\nuda: {{weight: {weight}}}"
    one, other = (settings_of(load_config(write(tmp_path, text.format(weight=weight)))) for weight in (2, 3))
    assert one == other
    text = "method: fixmatch\nfixmatch: {{threshold: 0.9, clamp: [0.1, {high}]}}"
    one, other = (settings_of(load_config(write(tmp_path, text.format(high=high)))) for high in (0.5, 0.6))
    assert one == other


def test_a_path_may_stand_alone_and_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ana")
    data = load_config(write(tmp_path, "data: {labeled: ~/a.tar, val: [b.tar, ~/c], root: ~/birds}")).data
    assert data.labeled == (Path("/home/ana/a.tar"),)
    assert data.val == (Path("b.tar"), Path("/home/ana/c"))
    assert data.root == Path("/home/ana/birds")
    with pytest.raises(UserError, match=r"`data\.root`: there is no home folder for ~nobody-of-that-name"):
        load_config(write(tmp_path, "data: {root: ~nobody-of-that-name/birds}"))


def test_the_big_teacher_of_an_adjuster_may_be_there_already(tmp_path: Path) -> None:
    start = "{model: big.safetensors, mode: use}"
    load_config(write(tmp_path, f"method: meta\nmeta: {{teacher: adjuster}}\nteacher: {{start: {start}}}"))


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Config().seed = 1


def test_a_change_is_checked_as_if_a_file_said_it() -> None:
    assert changed(Config(), seed=7) == Config(seed=7)
    with pytest.raises(ValidationError, match="warmup_steps is 10000, not below steps"):
        changed(Training(), warmup_steps=10_000)
    with pytest.raises(ValidationError, match="stepz"):
        changed(Training(), stepz=1)


# -------------------------------------------------------------------------------------------- methods from outside


class Echo(Section):
    """The section of a method that was registered from outside."""

    strength: float = 1.0
    network: NetworkSettings = NetworkSettings(ema_decay=0.9)


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> None:
    method = MethodConfig(reads=("student", "echo"), settings={"echo": Echo})
    monkeypatch.setitem(METHOD_CONFIGS, "echo", method)


@pytest.mark.usefixtures("echo")
def test_the_section_of_a_method_from_outside_is_one_as_any_other(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "method: echo\necho: {network: {dropout: 0.5}}"))
    assert config.echo == Echo(network=NetworkSettings(ema_decay=0.9, dropout=0.5))
    assert load_config(write(tmp_path, dump_yaml(config))) == config == changed(config, seed=0)
    assert semantic(config)["echo"] == semantic(config.echo)
    assert load_config(write(tmp_path, "method: echo")).echo == Echo()
    assert "echo" not in dump_yaml(load_config(write(tmp_path, ""))), "it would need the plugin to be read again"
    assert unread_keys(load_config(write(tmp_path, "echo: {strength: 2}"))) == ["echo.strength"]


@pytest.mark.usefixtures("echo")
def test_errors_in_the_section_of_a_method_from_outside_are_told_with_all_others(tmp_path: Path) -> None:
    text = "sead: 1\nstudent: {steps: 0}\necho: {strenght: 2, network: {dropuot: 0.5}}"
    with pytest.raises(UserError) as told:
        load_config(write(tmp_path, text))
    for message in (
        "`student.steps`: Input should be greater than 0 (got 0)",
        "unknown key `echo.strenght`, did you mean `strength`?",
        "unknown key `echo.network.dropuot`, did you mean `dropout`?",
        "unknown key `sead`, did you mean `seed`?",
    ):
        assert message in str(told.value)
    with pytest.raises(UserError, match=r"unknown key `ehco`, did you mean `echo`\?"):
        load_config(write(tmp_path, "ehco: {}"))


def test_an_optimizer_has_the_rate_and_decay_of_its_own_paper() -> None:
    """adamw with sgd's rate of 0.1, scaled to a student's batch, destroys a network in its first steps."""
    for name, lr, decay in (("sgd", 0.1, 5e-4), ("adamw", 2.5e-4, 0.05), ("lamb", 6.25e-4, 0.02)):
        config = parse(Config, {section: {"optimizer": {"name": name}} for section in ("teacher", "student")}, "x")
        for training in (config.teacher, config.student):
            assert (training.optimizer.lr, training.optimizer.weight_decay) == (lr, decay)
    given = parse(Config, {"teacher": {"optimizer": {"name": "adamw", "lr": 0.5}}}, "x").teacher.optimizer
    assert (given.lr, given.weight_decay, given.lr_batch_size) == (0.5, 0.05, 256)


def test_the_default_of_a_field_is_for_its_own_optimizer_alone() -> None:
    fields = {"image_size": 64}
    finetune = parse(Config, {"finetune": {**fields, "optimizer": {"name": "adamw"}}}, "x").finetune
    assert finetune is not None
    assert (finetune.optimizer.lr, finetune.optimizer.weight_decay) == (2.5e-4, 0.05)
    same = parse(Config, {"finetune": {**fields, "optimizer": {"weight_decay": 0.0}}}, "x").finetune
    assert same is not None
    assert (same.optimizer.name, same.optimizer.lr, same.optimizer.weight_decay) == ("sgd", 0.01, 0.0)
    raw = {"method": "meta", "meta": {"adjuster": {"optimizer": {"lr": 0.01}}}}
    adjuster = parse(Config, raw, "x").meta.adjuster.optimizer  # type: ignore[attr-defined]
    assert (adjuster.name, adjuster.lr, adjuster.weight_decay) == ("adamw", 0.01, 0.0)
