"""What the tests of all launchers launch from."""

import pytest

from support.stand_ins import checkout


@pytest.fixture(scope='session')
def root(tmp_path_factory):
    """A checkout that no test changes."""
    return checkout(tmp_path_factory.mktemp('checkout'))
