"""What of a config results depend on, and that a config survives being written."""

from __future__ import annotations

import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Config, Section, Training, dump_yaml, parse, semantic


def sections(section: Section) -> list[Section]:
    inner = [getattr(section, name) for name in type(section).model_fields]
    return [section, *(s for value in inner if isinstance(value, Section) for s in sections(value))]


def test_paths_workers_and_intervals_are_operational() -> None:
    operational = {
        name
        for section in sections(Config())
        for name, field in type(section).model_fields.items()
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("operational")
    }
    paths = {"root", "labeled", "unlabeled", "val", "test", "classes", "cache_dir"}
    intervals = {"log_every", "checkpoint_every", "keep_checkpoints", "stall_minutes"}
    assert operational == paths | intervals | {
        "nodes",
        "cache",
        "decode_workers",
        "remote_cache_gb",
        "dead_units",
        "gradient_checkpointing",
        "promotion_level",
        "probe",
    }


def test_semantic_leaves_operational_fields_out_at_every_depth() -> None:
    one = parse(Config, {"data": {"root": "/a"}, "runtime": {"log_every": 1}}, "x")
    other = parse(Config, {"data": {"root": "/b"}, "runtime": {"log_every": 2}}, "x")
    assert semantic(one) == semantic(other)
    assert "root" not in semantic(one)["data"]
    assert semantic(one) != semantic(parse(Config, {"seed": 1}, "x"))


def test_semantic_leaves_a_technique_out_while_it_is_off() -> None:
    on, off = (semantic(Training(ema_decay=decay)) for decay in (0.9, 0.0))
    assert on["ema_decay"] == 0.9
    assert off == {name: value for name, value in on.items() if name != "ema_decay"}


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "steps": st.integers(1, 10**6),
            "ema_decay": st.floats(0, 0.9999),
            "model_args": st.dictionaries(
                st.text("abc", min_size=1), st.booleans() | st.integers() | st.floats(-9, 9) | st.text("xyz 1.e")
            ),
            "optimizer": st.fixed_dictionaries({"lr": st.floats(1e-9, 1e3)}),
        },
    )
)
def test_any_training_survives_yaml(raw: dict[str, object]) -> None:
    training = parse(Training, raw, "x")
    again = parse(Training, yaml.safe_load(dump_yaml(training)), "x")
    assert again == training
    assert dump_yaml(again) == dump_yaml(training)


def test_overrides_hold_for_their_round_and_the_last_for_all_later() -> None:
    config = parse(Config, {"rounds": {"overrides": [{"student.steps": 1}, {"select.threshold": 0.5}]}}, "x")
    assert [config.for_round(n).student.steps for n in (1, 2, 3)] == [1, 10_000, 10_000]
    assert [config.for_round(n).select.threshold for n in (1, 2, 3)] == [0.0, 0.5, 0.5]
