"""What a resume asks of the machine."""

from __future__ import annotations

import json
import logging

import pytest

from pipeline.config import Runtime
from pipeline.stages import machine
from pipeline.stages.machine import environment, resolve


def test_the_environment_names_what_bits_depend_on() -> None:
    found = environment(Runtime(device="cpu"))
    assert {"selftrain", "commit", "torch", "timm", "numpy", "pillow", "machine"} < set(found)
    json.dumps(found)


@pytest.mark.parametrize(
    ("precision", "has_bf16", "told"), [("bf16", False, True), ("bf16", True, False), ("auto", False, False)]
)
def test_a_precision_that_is_only_emulated_is_a_warning(
    precision: str, has_bf16: bool, told: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(machine, "_cpu_has_bf16", lambda: has_bf16)
    monkeypatch.setattr(logging.getLogger("selftrain"), "propagate", True)
    resolved = resolve(Runtime(device="cpu", precision=precision))  # type: ignore[arg-type]
    assert resolved.precision == ("bf16" if precision == "bf16" or has_bf16 else "fp32")
    assert ("only emulates" in caplog.text) == told
