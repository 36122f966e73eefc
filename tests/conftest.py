"""One hypothesis profile for every run: the same examples each time, and no deadline on a shared machine."""

import pytest
from hypothesis import settings

pytest.register_assert_rewrite("tests.common")
settings.register_profile("ci", max_examples=150, deadline=None, derandomize=True, database=None)
settings.load_profile("ci")
