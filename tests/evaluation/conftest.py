"""Fixtures of the evaluations' tests."""

from tests.evaluation.images import other, real, small  # noqa: F401
