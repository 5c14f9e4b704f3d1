"""Places that tests read from."""

import pathlib

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
# A folder beside the clone, with data sets and the full set of reference numbers. Tests that need it skip without it.
SHARED = REPOSITORY.parent / 'shared'
