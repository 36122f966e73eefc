"""Hypothesis profiles: the same 200 examples in every ordinary run, 2,000 fresh ones with `--hypothesis-profile
nightly`. No deadline, since machines are shared."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("ci", max_examples=200, deadline=None, derandomize=True, database=None)
settings.register_profile("nightly", max_examples=2000, deadline=None)
settings.load_profile("ci")
