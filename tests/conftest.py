"""Hypothesis profiles: the same 200 examples in every ordinary run, 2,000 fresh ones with `--hypothesis-profile
nightly`. No deadline, since machines are shared."""

from __future__ import annotations

import math

import pytest
from hypothesis import settings

settings.register_profile("ci", max_examples=200, deadline=None, derandomize=True, database=None)
settings.register_profile("nightly", max_examples=2000, deadline=None)
settings.load_profile("ci")


@pytest.fixture(autouse=True)
def never_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """No result is refused for its latency: in a few rounds on a busy machine the clock says anything."""
    monkeypatch.setattr("onnxprune.stopwatch.SLOWER", math.inf)
