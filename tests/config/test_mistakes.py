"""Mistakes in a config are told by key, value and fix."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.configs import write

from pipeline.config import (
    Probe,
    load,
    load_config,
)
from pipeline.demos.moons.config import TwoMoons
from pipeline.errors import UserError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("studnet: {}", r"unknown key `studnet`, did you mean `student`\?"),
        (
            "student: {unlabelled_ratio: 7}",
            r"unknown key `student\.unlabelled_ratio`, did you mean `unlabeled_ratio`\?",
        ),
        (
            "student: {optimizer: {learning: 1}}",
            r"unknown key `student\.optimizer\.learning`, valid: decay, decay_vectors, eps, lr",
        ),
        ("finetune: {stepz: 1}", r"unknown key `finetune\.stepz`, did you mean `steps`\?"),
        ("finetune: {steps: 100}", r"`finetune\.image_size`: Field required"),
        ("finetune: {image_size: 64, unlabeled_ratio: 4}", r"unknown key `finetune\.unlabeled_ratio`"),
        ("finetune: {image_size: 64, warmup_steps: 500}", r"`finetune`: warmup_steps is 500, not below steps \(500\)"),
        ("student: {early_stop: 10}", r"`student`: early_stop is 10, but there are only 10 evaluations.*lower it"),
        ("student: {steps: 5, thaw_steps: 5}", r"`student`: thaw_steps is 5, not below steps \(5\).*lower thaw_steps"),
        ("student: {steps: 5, warmup_steps: 5}", r"`student`: warmup_steps is 5, not below steps \(5\).*lower"),
        (
            "teacher: {noise_labeled: false, strong: {cutout: 4}}",
            r"`teacher`: the strong view is set, but with noise_labeled false .* set noise_labeled to true",
        ),
        ("select: {prior: [0.5, 0.5]}", r"`select`: prior is set, but balance is uniform.*set balance to prior"),
        (
            "student: {targets: hard, target_temperature: 0.5}",
            r"`student`: target_temperature is 0\.5, but hard targets.*to soft",
        ),
        (
            "rounds: {start: init}\nstudent: {unlabeled_ratio: 4, start: {model: a.safetensors}}",
            r"student\.start is a\.safetensors, but with rounds\.start: init .*drop student\.start",
        ),
        (
            "student: {start: {model: timm:resnet18.a1_in1k, mode: insert}}",
            r"`student\.start`: mode is insert, but weights of timm have nothing that says .*use mode: init",
        ),
        (
            "student: {start: {model: timm:resnet18.a1_in1k, mode: continue}}",
            r"`student\.start`: mode is continue, but weights of timm have no checkpoint .*use mode: init",
        ),
        ("teacher: {steps: 0}", r"`teacher\.steps`: Input should be greater than 0 \(got 0\)"),
        ("teacher: {steps: many}", r"`teacher\.steps`: .*valid integer.* \(got 'many'\)"),
        ("teacher: {optimizer: {lr: .inf}}", r"`teacher\.optimizer\.lr`: Input should be a finite number"),
        ("teacher: {optimizer: {name: adam}}", r"`teacher\.optimizer\.name`: .*'sgd', 'rmsproptf'.* \(got 'adam'\)"),
        ("teacher: {unlabeled_ratio: 1}", r"the round-0 teacher has no pseudo-labels.*teacher\.unlabeled_ratio to 0"),
        ("student: {unlabeled_ratio: 0}", r"student\.unlabeled_ratio is 0, so students would see no pseudo-labels"),
        ("rounds: {overrides: [{teacher.steps: 1}]}", r"label, select and student only, not `teacher\.steps`"),
        ("rounds: {overrides: [{student.stepz: 1}]}", r"unknown key `student\.stepz`, did you mean `steps`\?"),
        (
            "method: meta\nmeta: {teacher: adjuster}\nteacher: {unlabeled_ratio: 2}",
            r"the round-0 teacher has no pseudo-labels to train on; set teacher\.unlabeled_ratio to 0",
        ),
        ("method: two_moons", r"`method`: there is no method 'two_moons', valid: .*'two_moons'"),
        ("method: metta", r"`method`: there is no method 'metta', did you mean `meta`\?"),
        (
            "method: uda\nrounds: {num_rounds: 0}\nstudent: {unlabeled_ratio: 0}",
            r"student\.unlabeled_ratio leaves no unlabeled images",
        ),
        ("- a\n- b", r"must be a mapping of sections, not list"),
        ("a: [", r"cannot be read as YAML"),
        ("student: {steps: 5}\nseed: 1\nstudent: {steps: 6}", r"(?s)`student` is given twice.* line 3"),
        ("student: {steps: 5, optimizer: {lr: 1.0, lr: 2.0}}", r"(?s)`lr` is given twice.* line 1"),
    ],
)
def test_errors_name_key_value_and_fix(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("meta: {teacher: adjuster}", r"meta\.teacher is adjuster, but points .* set it to network"),
        ("meta: {feedback: off}", r"meta\.feedback is off, which is a method of its own here"),
        ("steps: 50\nmeta: {student_wait: 50}", r"student_wait \(50\) leaves nothing of steps \(50\)"),
    ],
)
def test_errors_of_the_two_moons_name_key_value_and_fix(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(TwoMoons, write(tmp_path, text))


def test_every_wrong_key_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`student\.stepz`.*`sead`"):
        load_config(write(tmp_path, "sead: 1\nstudent: {stepz: 1}"))


def test_a_missing_config_is_named_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.yaml does not exist; `selftrain init DATA > nothing\.yaml`"):
        load_config(tmp_path / "nothing.yaml")


@pytest.mark.parametrize("wrong", ["steps", "=1", "teacher.steps.x=1", "a=["])
def test_a_malformed_set_is_an_error(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(UserError, match="--set"):
        load_config(write(tmp_path, "teacher: {steps: 3}"), [wrong])


@pytest.mark.parametrize(
    "text", ["student: {steps: true}", "fixmatch: {threshold: false}", "student: {optimizer: {lr: true}}"]
)
def test_a_boolean_is_no_number(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"`[\w.]+`: \w+ is (true|false), which is no number"):
        load_config(write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "fixmatch: {threshold: Adaptive}",
            r"`fixmatch\.threshold`: .*`fixmatch\.threshold`: Input should be 'adaptive'",
        ),
        ("data: {root: 5}", r"`data\.root`: a path is needed \(got 5\)"),
        ("data: {labeled: [5]}", r"`data\.labeled`: a path is needed"),
        ("data: {labeled: 'http://here/{a,b}.tar'}", r"`data\.labeled`: http://here/\{a,b\}\.tar is an address"),
        ("data: {root: 's3://ID:SECRET@bucket/x'}", r"`data\.root`: an address of s3:// holds a secret, .*AWS_PROFILE"),
        ("data: {root: 's3:///x'}", r"`data\.root`: s3:///x is no address of a bucket"),
        ("data: {cache_dir: 's3://bucket/x'}", r"`data\.cache_dir`: s3://bucket/x is an address, from which nothing"),
        ("fixmatch: {clamp: 0.9}", r"`fixmatch\.clamp`: a list, \[a, b\] is needed \(got 0\.9\)"),
        ("student: {mixup: yes please}", r"`student\.mixup`: a section, \{key: value\} is needed"),
        ("method: fixmatch\nfixmatch: {threshold: 1}", r"fixmatch\.threshold asks for a confidence of 1"),
        (
            "method: fixmatch\nfixmatch: {threshold: adaptive, clamp: [0.95, 1]}\nstudent: {label_smoothing: 0.2}",
            r"fixmatch\.clamp 0\.95 would leave no unlabeled image",
        ),
        (
            "method: fixmatch\nfixmatch: {mixup: {}}\nstudent: {batch_size: 1, unlabeled_ratio: 1}",
            "raise student.unlab",
        ),
        ("student: {mixup: {}, batch_size: 2, unlabeled_ratio: 0, accumulation: 2}", "one image per micro-step to mix"),
    ],
)
def test_what_could_not_work_is_an_error_by_its_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(write(tmp_path, text))


def test_neighbors_are_members_of_the_committee_alone_and_have_no_penalty(tmp_path: Path) -> None:
    plain = "start: {model: 'timm:x'}, probe: "
    knn = load_config(write(tmp_path, f"teacher: {{{plain} {{}}}}\ncommittee: [{{{plain} {{classifier: knn}}}}]"))
    assert knn.committee[0].probe == Probe(classifier="knn")
    with pytest.raises(UserError, match=r"teacher\.probe\.classifier is knn, which makes no model, .* to logistic"):
        load_config(write(tmp_path, f"teacher: {{{plain} {{classifier: knn}}}}"))
    with pytest.raises(UserError, match=r"c is 0\.1, but with classifier knn nothing is fitted"):
        load_config(write(tmp_path, f"committee: [{{{plain} {{classifier: knn, c: 0.1}}}}]"))


def test_a_probe_is_judged_as_it_is_tested(tmp_path: Path) -> None:
    teacher = "teacher: {start: {model: 'timm:x'}, probe: {flip: true}}"
    with pytest.raises(UserError, match=r"teacher\.probe\.flip is True and evaluate\.flip False"):
        load_config(write(tmp_path, teacher))
    assert load_config(write(tmp_path, f"{teacher}\nevaluate: {{flip: true}}")).evaluate.flip
