"""Closed forms from the theory, without any data: what a method would report on a model that is known exactly."""

from darkmatter.theory.synthetic_test import SyntheticTest, synthetic_test

__all__ = ["SyntheticTest", "synthetic_test"]
