"""Hypothesis as these tests use it: the same examples every time, and no stopwatch, for the machine may be busy."""

from hypothesis import HealthCheck, settings

law = settings(deadline=None, derandomize=True)


def law_of(max_examples: int) -> settings:
    """A law that is dear to check: so many examples; folders that pytest makes may be shared among them."""
    return settings(law, max_examples=max_examples, suppress_health_check=[HealthCheck.function_scoped_fixture])
