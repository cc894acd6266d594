"""What a resume asks of the machine."""

from __future__ import annotations

import json

from pipeline.config import Runtime
from pipeline.stages.machine import environment


def test_the_environment_names_what_bits_depend_on() -> None:
    found = environment(Runtime(device="cpu"))
    assert {"selftrain", "commit", "torch", "timm", "numpy", "pillow", "machine"} < set(found)
    json.dumps(found)
