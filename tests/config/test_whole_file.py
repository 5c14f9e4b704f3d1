"""Files are written completely or not at all, whatever interrupts the writing."""

import concurrent.futures
import errno
import json
import threading

import pytest
from etils import epath

from simclr_jax.config.whole_file import write_whole

DISK_FULL = OSError(errno.ENOSPC, 'No space left on device')


def half_then(error):
    """A writer that fails in the middle of its file."""

    def write(file):
        file.write(b'{"step"')
        raise error

    return write


@pytest.mark.parametrize('error', [DISK_FULL, ValueError('no number'), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_old_file(tmp_path, error):
    path = epath.Path(tmp_path) / 'result.json'
    write_whole(path, json.dumps({'step': 1}))
    with pytest.raises(type(error)):
        write_whole(path, half_then(error))
    assert json.loads(path.read_text()) == {'step': 1}
    assert [file.name for file in path.parent.iterdir()] == ['result.json']
    write_whole(path, json.dumps({'step': 3}))
    assert json.loads(path.read_text()) == {'step': 3}
    assert [file.name for file in path.parent.iterdir()] == ['result.json']


def test_an_interrupted_first_write_leaves_nothing(tmp_path):
    path = epath.Path(tmp_path) / 'result.json'
    with pytest.raises(OSError) as caught:
        write_whole(path, half_then(DISK_FULL))
    assert list(tmp_path.iterdir()) == []
    # The system's error of a write names no file.
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))


def test_text_and_bytes_arrive_unchanged(tmp_path):
    path = epath.Path(tmp_path) / 'results.md'
    write_whole(path, 'kNN 95 % ± 0.4\r\n')
    assert path.read_bytes() == b'kNN 95 % \xc2\xb1 0.4\r\n'
    write_whole(path, lambda file: file.write(b'\x00\xff'))
    assert path.read_bytes() == b'\x00\xff'


def test_the_old_content_stands_until_the_new_one_is_complete(tmp_path):
    path = epath.Path(tmp_path) / 'results.md'
    write_whole(path, 'old')
    seen = []

    def write(file):
        file.write(b'ne')
        file.flush()
        seen.append(path.read_text())
        file.write(b'w')

    write_whole(path, write)
    assert seen == ['old']
    assert path.read_text() == 'new'


def test_a_failed_write_into_no_directory_tells_the_first_error(tmp_path):
    (tmp_path / 'file').write_text('')
    for name in ('absent', 'file'):
        with pytest.raises(OSError, match=rf'{name}/result\.json'):
            write_whole(epath.Path(tmp_path) / name / 'result.json', 'text')


def test_two_threads_may_write_the_same_file(tmp_path):
    path = epath.Path(tmp_path) / 'result.json'
    both = threading.Barrier(2, timeout=10)

    def write(text):
        def content(file):
            both.wait()
            file.write(text)
            both.wait()

        write_whole(path, content)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(write, [b'a' * 1000, b'b' * 1000]))
    assert set(path.read_text()) in ({'a'}, {'b'})
    assert [file.name for file in tmp_path.iterdir()] == ['result.json']
