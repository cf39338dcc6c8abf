"""Hypothesis profiles and the little that several test files share."""

from __future__ import annotations

import os

import torch
from hypothesis import HealthCheck, settings

# many small products: threads cost more than they bring, and on a shared machine up to thirty times more
torch.set_num_threads(1)

# deadlines measure the machine, not the code: shared CI cores stall at random
# the default repeats itself, so that a clone passes or fails for its code alone; "thorough" is for finding new cases
settings.register_profile(
    "repeatable", max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("thorough", max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))
