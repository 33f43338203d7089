"""Every foreign model in every variant."""

from __future__ import annotations

import pytest

from tests.support.accelerated import CASES, Case


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]
