"""The reference's numbers: the full set beside the clone where it is, otherwise the thinned set in tests/oracles/."""

import functools
import gzip
import json

import numpy as np
import pytest

from support.paths import REPOSITORY, SHARED

FULL = SHARED / 'oracles'
THINNED = REPOSITORY / 'tests' / 'oracles'


class Oracle:
    """One pair of files: `info` is the json, `oracle[name]` an array of the npz.

    Of a large array the thinned set holds only some entries, as a flat array. `oracle.pick(name, ours)` takes the same
    entries of our array. With the full set it returns our array as it is.
    """

    def __init__(self, name):
        self.name = name
        self.is_thinned = not any((FULL / f'{name}.{kind}').exists() for kind in ('json', 'npz'))
        folder = THINNED if self.is_thinned else FULL
        self.info = read_json(folder / f'{name}.json')
        arrays = folder / f'{name}.npz'
        self.arrays = dict(np.load(arrays, allow_pickle=False)) if arrays.exists() else {}
        self.full_shapes = read_json(THINNED / 'shapes.json').get(name, {}) if self.is_thinned else {}
        if self.info is None and not self.arrays:
            pytest.skip(f'the reference numbers {name} are neither at {FULL} nor at {THINNED}')

    def __contains__(self, name):
        return name in self.arrays

    def __getitem__(self, name):
        if self.is_thinned and name not in self.arrays:
            pytest.skip(f'{name} of {self.name} is only in the full set of reference numbers, which is not at {FULL}')
        return self.arrays[name]

    def pick(self, name, ours):
        """The entries of `ours` whose reference values are stored under this name."""
        ours = np.asarray(ours)
        if name not in self.full_shapes:
            return ours
        assert list(ours.shape) == self.full_shapes[name], f'{name} has shape {ours.shape}'
        return ours.reshape(-1)[np.arange(self[name].size) * 7919 % ours.size]


def read_json(path):
    """The content of a json file that may be compressed, or None."""
    compressed = path.with_name(f'{path.name}.gz')
    if compressed.exists():
        return json.loads(gzip.decompress(compressed.read_bytes()))
    return json.loads(path.read_text()) if path.exists() else None


# Read once per session. Nobody changes what it returns.
load_oracle = functools.cache(Oracle)
