"""Explicit-state models of the protocols that keep the copies equal: ``python -m tests.model``."""
