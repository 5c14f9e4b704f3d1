"""Probes fit on one device. With eight, most of the time would go into waiting for each other."""

import pytest

from simclr_jax import sharding
from support.runs import mesh_of


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """What names no devices in a test gets the first one."""
    monkeypatch.setattr(sharding, 'make_mesh', mesh_of(1))
