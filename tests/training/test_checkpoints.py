"""Checkpoints: what was saved comes back bit for bit, or is known to be damaged."""

import errno
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax import sharding
from simclr_jax.training import checksum as checksums
from simclr_jax.training.checkpoints import CheckpointError, Checkpoints
from simclr_jax.training.checksum import checksum
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


@pytest.fixture(scope='module')
def original(tmp_path_factory, mesh):
    """A work directory with checkpoints of steps 2 to 6, of which three stay, and what was said."""
    directory, said = tmp_path_factory.mktemp('original'), []
    checkpoints = Checkpoints(str(directory), keep=3, say=said.append)
    for step in range(2, 7):
        checkpoints.save(make_state(mesh, step))
    checkpoints.close()
    return directory, said


@pytest.fixture
def saved(tmp_path, original):
    """A copy of the original."""
    shutil.copytree(original[0], tmp_path, dirs_exist_ok=True)
    return tmp_path, list(original[1])


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
    # In the words of a user, not of Orbax.
    assert len(saved[1][0]) < 200 + len(str(saved[0]))
    assert not any(word in saved[1][0] for word in ('pybind', 'Error', 'tensorstore', 'line 1'))
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
    # The second time they are in damaged/.
    for _ in range(2):
        checkpoints = reopen(saved)
        with pytest.raises(CheckpointError, match=r'all checkpoints .* are damaged \(steps 4, 5, 6\); choose another'):
            checkpoints.restore(make_state(mesh, 0))
        checkpoints.close()
    assert sorted(path.name for path in (saved[0] / 'damaged').iterdir()) == ['4', '5', '6']


@pytest.mark.parametrize(
    'error, why',
    [
        (PermissionError(errno.EACCES, 'Permission denied', '6'), 'Permission denied'),
        (ValueError('UNAVAILABLE: Error opening "zarr" driver: [tensorstore_spec={}]'), 'unavailable'),
        (OSError(errno.EIO, 'Input/output error'), 'Input/output error'),
    ],
)
def test_what_cannot_be_reached_is_not_called_damaged(saved, mesh, monkeypatch, error, why):
    def fail(self, step, like):
        raise error

    checkpoints = reopen(saved)
    monkeypatch.setattr(Checkpoints, '_restore_step', fail)
    with pytest.raises(CheckpointError, match=f'of step 6 in .* cannot be read: {why}. Correct this'):
        checkpoints.restore(make_state(mesh, 0))
    checkpoints.close()
    assert not (saved[0] / 'damaged').exists()


def everything_in(directory):
    return {path: path.stat().st_mtime_ns for path in [directory, *directory.rglob('*')]}


class TestReading:
    """Readers beside a run: they change nothing, and follow it."""

    def test_evaluation_moves_nothing_aside(self, saved, mesh):
        largest_file(saved[0] / 'checkpoints' / '6' / 'model').unlink()
        # What a save that is being written looks like.
        shutil.copytree(saved[0] / 'checkpoints' / '5', saved[0] / 'checkpoints' / '7.orbax-checkpoint-tmp')
        before = everything_in(saved[0])
        checkpoints = Checkpoints(str(saved[0]), say=saved[1].append, reads_only=True)
        assert checkpoints.restore_model(mesh)[1] == 5
        checkpoints.close()
        assert everything_in(saved[0]) == before
        # A run that resumes there removes it.
        run = reopen(saved)
        run.save(make_state(mesh, 7))
        run.close()
        assert not (saved[0] / 'checkpoints' / '7.orbax-checkpoint-tmp').exists()

    def test_nothing_is_made_where_nothing_is(self, tmp_path, mesh):
        checkpoints = Checkpoints(str(tmp_path / 'run'), reads_only=True)
        with pytest.raises(CheckpointError, match=r'no checkpoint in .*; train first'):
            checkpoints.restore_model(mesh)
        checkpoints.close()
        assert list(tmp_path.iterdir()) == []

    def test_a_save_survives_readers(self, saved, mesh):
        run = reopen(saved)
        for step in (7, 8):
            run.save(make_state(mesh, step))
            reader = Checkpoints(str(saved[0]), reads_only=True)
            assert reader.restore_model(mesh)[1] in (step - 1, step)
            reader.close()
        run.close()
        assert run.latest_step() == 8

    def test_a_checkpoint_that_vanishes_is_not_missed(self, saved, mesh):
        reader = Checkpoints(str(saved[0]), say=saved[1].append, reads_only=True)
        run = reopen(saved)
        for step in (7, 8, 9):
            run.save(make_state(mesh, step))
        run.close()
        assert not (saved[0] / 'checkpoints' / '6').exists()
        assert reader.restore_model(mesh)[1] == 9
        reader.close()
        assert saved[1] == []


class TestFit:
    """A state of other shapes is told, before anything is moved."""

    def test_the_same_fits_and_so_do_its_shapes(self, saved, mesh):
        checkpoints = reopen(saved)
        checkpoints.check_fits(make_state(mesh, 0))
        checkpoints.check_fits(jax.eval_shape(lambda: make_state(mesh, 0)))
        checkpoints.close()

    def test_what_differs_is_named_with_the_cure(self, saved, mesh):
        state = make_state(mesh, 0)
        wider = state.replace(
            params={'encoder': {'kernel': jnp.ones((64, 66))}, 'head': {'bias': jnp.ones(3)}},
            opt_state=(state.opt_state[0].astype(jnp.uint32), state.opt_state[1]),
        )
        before = everything_in(saved[0] / 'checkpoints')
        checkpoints = Checkpoints(str(saved[0]), reads_only=True)
        with pytest.raises(CheckpointError) as caught:
            checkpoints.check_fits(wider)
        checkpoints.close()
        assert str(caught.value).splitlines() == [
            f'the checkpoint of step 6 in {saved[0]}/checkpoints belongs to another model or optimiser: '
            '4 arrays differ (saved -> wanted):',
            '  params/encoder/kernel: float32[64, 65] -> float32[64, 66]',
            '  params/head/bias: none -> float32[3]',
            '  params/probe/bias: float32[3] -> none',
            '  opt_state/0: int32[] -> uint32[]',
            'Undo these changes of the configuration; or choose another --workdir, and take over the parts that fit '
            f'by --config.init_from={saved[0]}',
        ]
        assert everything_in(saved[0] / 'checkpoints') == before

    def test_a_damaged_description_is_left_to_restoring(self, saved, mesh):
        (saved[0] / 'checkpoints' / '6' / 'train' / '_METADATA').unlink()
        checkpoints = reopen(saved)
        checkpoints.check_fits(make_state(mesh, 0))
        assert_same_bits(checkpoints.restore(make_state(mesh, 0)), make_state(mesh, 5))
        checkpoints.close()

    def test_shapes_are_those_of_the_checkpoint_that_can_be_read(self, saved):
        (saved[0] / 'checkpoints' / '6' / 'model' / '_METADATA').unlink()
        checkpoints = Checkpoints(str(saved[0]), reads_only=True)
        assert checkpoints.model_shapes()['params']['encoder']['kernel'].shape == (64, 65)
        for path in (saved[0] / 'checkpoints').glob('*/model/_METADATA'):
            path.unlink()
        with pytest.raises(CheckpointError, match=r'step 6.*step 5.*put an undamaged one there'):
            checkpoints.model_shapes()
        checkpoints.close()

    def test_a_constant_part_that_was_not_there_is_told(self, saved, mesh):
        checkpoints = Checkpoints(str(saved[0]), reads_only=True, constant={'teacher': 7})
        with pytest.raises(CheckpointError, match='without a teacher; choose another --workdir'):
            checkpoints.check_fits(make_state(mesh, 0))
        checkpoints.close()


@pytest.mark.parametrize('name, found', [('[lr=0.1]', r'contains \['), ('a*b', r'contains \*'), ('a?', r'contains \?'),
                                         ('a\\b', r'contains \\'), ('caf\udce9', 'not UTF-8')])  # fmt: skip
def test_a_path_below_which_nothing_can_be_read_is_refused(tmp_path, name, found):
    for reads_only in (False, True):
        with pytest.raises(CheckpointError, match=f'{found}.*; rename it, or reach it by a symbolic link'):
            Checkpoints(str(tmp_path / name / 'run'), reads_only=reads_only)
    assert list(tmp_path.iterdir()) == []


def test_other_unusual_paths_work(tmp_path, mesh):
    directory = str(tmp_path / "a b']{c}%d#e:f|ä,g=~$h\n")
    checkpoints = Checkpoints(directory)
    checkpoints.save(make_state(mesh, 1))
    checkpoints.close()
    checkpoints = Checkpoints(directory)
    assert_same_bits(checkpoints.restore(make_state(mesh, 0)), make_state(mesh, 1))
    checkpoints.close()


def test_a_first_save_that_cannot_be_read_is_found_at_once(tmp_path, mesh, monkeypatch):
    """Such as that below a path that Orbax takes for a pattern, if it is not refused."""
    monkeypatch.setattr('simclr_jax.training.checkpoints.check_path', lambda directory: None)
    checkpoints = Checkpoints(str(tmp_path / '[a]'))
    with pytest.raises(CheckpointError, match=r'written to .*: it cannot be read back \(a file is missing\)'):
        checkpoints.save(make_state(mesh, 1))
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


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16, jnp.int32, jnp.uint8])
@pytest.mark.parametrize('shape', [(), (8,), (16, 3)])
def test_the_checksum_is_the_same_on_devices_and_on_the_host(mesh, monkeypatch, shape, dtype):
    """Whole on every device, and divided among them."""
    array = np.random.default_rng(0).integers(-100, 100, shape).astype(dtype)
    layouts = [sharding.replicated(mesh), *([sharding.by_rows(mesh)] if shape else [])]
    trees = [jax.device_put({'x': array, 'y': array}, layout) for layout in layouts]
    on_the_host = {checksum(tree) for tree in trees}
    monkeypatch.setattr(checksums, '_is_on_the_host', lambda leaf: False)
    assert {checksum(tree) for tree in trees} == on_the_host
    assert len(on_the_host) == 1


def test_the_checksum_sees_order():
    x = jnp.arange(6, dtype=jnp.float32)
    sums = {checksum([x, y]) for y in (x[::-1], x)} | {checksum([x[::-1], x])}
    assert len(sums) == 3
