"""Gives every test module that holds `CLAIMS` its claims and their twins, one test each."""

from __future__ import annotations

import pytest
import torch

torch.set_num_threads(1)  # many small products: threads cost more than they bring


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    claims = getattr(metafunc.module, "CLAIMS", ())
    if metafunc.function.__name__ not in ("test_claim", "test_twin"):
        return
    if "twin" in metafunc.fixturenames:
        pairs = [(claim, twin) for claim in claims for twin in claim.twins]
        ids = [f"{claim.name}, {twin}" for claim, twin in pairs]
        metafunc.parametrize(("claim", "twin"), pairs, ids=ids)
    elif "claim" in metafunc.fixturenames:
        metafunc.parametrize("claim", claims, ids=str)
