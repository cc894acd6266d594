"""Prefect's settings for calls that must not wait for the server: one try of ten seconds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from prefect.context import SettingsContext, get_settings_context
from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, PREFECT_CLIENT_MAX_RETRIES, Settings

_made: list[tuple[SettingsContext, Settings]] = []
"""The settings that were made last, and of what."""


@contextlib.contextmanager
def impatient() -> Iterator[None]:
    """Have Prefect's clients that are made in the block try once. The settings are made once per settings of the
    process, because making them takes a tenth of a second; Prefect's `temporary_settings` makes them anew."""
    now = get_settings_context()
    made = _made[0] if _made else None
    if made is None or made[0] is not now:
        once: dict[Any, float] = {PREFECT_CLIENT_MAX_RETRIES: 0, PREFECT_API_REQUEST_TIMEOUT: 10.0}
        made = (now, now.settings.copy_with_update(once))
        _made[:] = [made]
    with SettingsContext(profile=now.profile, settings=made[1]):
        yield
