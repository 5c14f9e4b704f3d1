"""Checkpoints: what was saved comes back bit for bit, or is known to be damaged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax import sharding
from simclr_jax.training.checkpoints import CheckpointError, Checkpoints, checksum
from simclr_jax.training.state import TrainState

# What Orbax leaves behind of a damaged checkpoint complains when it is collected, whenever that may be.
pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')


@pytest.fixture(scope='module')
def mesh():
    return sharding.make_mesh()


def make_state(mesh, step):
    key = jax.random.key(step)
    state = TrainState(
        step=jnp.asarray(step, jnp.int32),
        params={'encoder': {'kernel': jax.random.normal(key, (64, 65))}, 'probe': {'bias': jnp.ones(3)}},
        batch_stats={'encoder': {'mean': jnp.arange(7, dtype=jnp.float32)}},
        opt_state=(jnp.asarray(step, jnp.int32), {'encoder': {'kernel': jax.random.normal(key, (64, 65))}}),
    )
    return jax.device_put(state, sharding.replicated(mesh))


def assert_same_bits(found, expected):
    found, expected = jax.tree.leaves(jax.device_get(found)), jax.tree.leaves(jax.device_get(expected))
    assert [np.asarray(x).tobytes() for x in found] == [np.asarray(x).tobytes() for x in expected]


@pytest.fixture
def saved(tmp_path, mesh):
    """A work directory with checkpoints of steps 2 to 6, of which three stay, and what was said."""
    said = []
    checkpoints = Checkpoints(str(tmp_path), keep=3, say=said.append)
    for step in range(2, 7):
        checkpoints.save(make_state(mesh, step))
    checkpoints.close()
    return tmp_path, said


def reopen(saved):
    return Checkpoints(str(saved[0]), keep=3, say=saved[1].append)


def largest_file(directory):
    return max((path for path in directory.rglob('*') if path.is_file()), key=lambda path: path.stat().st_size)


def test_the_newest_few_stay_and_the_newest_comes_back(saved, mesh):
    checkpoints = reopen(saved)
    steps = sorted(int(path.name) for path in (saved[0] / 'checkpoints').iterdir())
    restored = checkpoints.restore(make_state(mesh, 0))
    assert steps == [4, 5, 6]
    assert_same_bits(restored, make_state(mesh, 6))
    checkpoints.close()


def test_nothing_saved_is_none(tmp_path, mesh):
    checkpoints = Checkpoints(str(tmp_path))
    assert checkpoints.latest_step() is None
    assert checkpoints.restore(make_state(mesh, 0)) is None
    with pytest.raises(CheckpointError, match=r'no checkpoint in .*; train first'):
        checkpoints.restore_model(mesh)
    checkpoints.close()


def test_the_model_comes_back_alone_without_being_described(saved, mesh):
    checkpoints = reopen(saved)
    model, step = checkpoints.restore_model(mesh)
    expected = make_state(mesh, 6)
    assert step == 6
    assert_same_bits(model, {'batch_stats': expected.batch_stats, 'params': expected.params})
    checkpoints.close()


@pytest.mark.parametrize('damage', ['cut', 'lost', 'bit flipped', 'meta lost'])
def test_a_damaged_newest_is_told_and_the_one_before_it_used(saved, mesh, damage):
    newest = saved[0] / 'checkpoints' / '6'
    victim = newest / 'meta' / 'metadata' if damage == 'meta lost' else largest_file(newest / 'model')
    content = bytearray(victim.read_bytes())
    if damage in ('lost', 'meta lost'):
        victim.unlink()
    elif damage == 'cut':
        victim.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 0x10
        victim.write_bytes(content)

    checkpoints = reopen(saved)
    restored = checkpoints.restore(make_state(mesh, 0))
    assert_same_bits(restored, make_state(mesh, 5))
    assert 'step 6' in saved[1][0]
    assert 'damaged' in saved[1][0]
    # Set aside, not lost; and a new checkpoint of that step can take its place.
    assert (saved[0] / 'damaged' / '6').is_dir()
    checkpoints.save(make_state(mesh, 6))
    checkpoints.close()
    again = reopen(saved)
    assert_same_bits(again.restore(make_state(mesh, 0)), make_state(mesh, 6))
    again.close()


def test_all_damaged_is_an_error_and_not_a_fresh_start(saved, mesh):
    for step in (4, 5, 6):
        largest_file(saved[0] / 'checkpoints' / str(step) / 'model').unlink()
    checkpoints = reopen(saved)
    with pytest.raises(CheckpointError, match=r'all checkpoints .* are damaged \(steps \[4, 5, 6\]\)'):
        checkpoints.restore(make_state(mesh, 0))
    checkpoints.close()


def test_evaluation_moves_nothing_aside(saved, mesh):
    largest_file(saved[0] / 'checkpoints' / '6' / 'model').unlink()
    checkpoints = reopen(saved)
    assert checkpoints.restore_model(mesh)[1] == 5
    assert not (saved[0] / 'damaged').exists()
    checkpoints.close()


def test_a_save_cut_short_is_no_checkpoint(saved, mesh):
    """What a killed process leaves behind is under another name."""
    leftover = saved[0] / 'checkpoints' / '7.orbax-checkpoint-tmp'
    leftover.mkdir()
    (leftover / 'part').write_bytes(b'x')
    checkpoints = reopen(saved)
    assert checkpoints.latest_step() == 6
    checkpoints.close()


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16, jnp.int32, jnp.uint8])
def test_the_checksum_sees_every_bit(dtype):
    array = np.asarray(
        jax.random.normal(jax.random.key(0), (50,)).astype(dtype)
        if dtype != jnp.uint8
        else np.arange(50, dtype=np.uint8)
    )
    original = checksum({'x': jnp.asarray(array)})
    raw = np.frombuffer(array.tobytes(), np.uint8)
    random = np.random.default_rng(0)
    for place in random.integers(raw.size, size=20):
        flipped = raw.copy()
        flipped[place] ^= 1 << random.integers(8)
        changed = np.frombuffer(flipped.tobytes(), array.dtype)
        assert checksum({'x': jnp.asarray(changed)}) != original


def test_the_checksum_sees_order():
    x = jnp.arange(6, dtype=jnp.float32)
    sums = {checksum([x, y]) for y in (x[::-1], x)} | {checksum([x[::-1], x])}
    assert len(sums) == 3
