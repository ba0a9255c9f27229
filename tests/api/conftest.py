"""Fixtures of all tests of the APIs."""

from tests.api.served import served

__all__ = ["served"]
