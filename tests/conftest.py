"""One hypothesis profile for every run: the same examples each time, and no deadline on a shared machine."""

from hypothesis import settings

settings.register_profile("ci", max_examples=150, deadline=None, derandomize=True, database=None)
settings.load_profile("ci")
