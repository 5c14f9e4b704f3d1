"""TensorBoard events: what its own reader finds in them, and a full disk."""

import errno
import io
import sys

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.util import tensor_util

from simclr_jax.training.events import EventFile
from simclr_jax.training.log import Log


def tensors_of(directory):
    """{tag: [(step, array)]} of a directory of events."""
    events = event_accumulator.EventAccumulator(str(directory), {'tensors': 0})
    events.Reload()
    found = {tag: events.Tensors(tag) for tag in events.Tags()['tensors']}
    return {
        tag: [(row.step, tensor_util.make_ndarray(row.tensor_proto)) for row in rows] for tag, rows in found.items()
    }


def test_scalars_and_pictures_are_read_back(tmp_path):
    file = EventFile(str(tmp_path / 'tensorboard'))
    pictures = np.random.default_rng(0).random((2, 5, 7, 3), np.float32)
    file.images(0, {'views': pictures})
    file.scalars(1, {'loss': 0.5, 'accuracy': 0.25})
    file.scalars(2, {'loss': 0.375})
    # A resumed run opens a file of its own.
    EventFile(str(tmp_path / 'tensorboard')).scalars(3, {'loss': np.float32(0.125)})
    found = tensors_of(tmp_path / 'tensorboard')
    assert found.keys() == {'views', 'loss', 'accuracy'}
    assert [(step, float(value)) for step, value in found['loss']] == [(1, 0.5), (2, 0.375), (3, 0.125)]
    assert [(step, float(value)) for step, value in found['accuracy']] == [(1, 0.25)]
    ((step, (width, height, *files)),) = found['views']
    assert (step, int(width), int(height), len(files)) == (0, 7, 5, 2)
    for file, picture in zip(files, pictures, strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(file)))
        np.testing.assert_allclose(pixels / 255, picture, rtol=0, atol=0.5 / 255 + 1e-6)


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    file = EventFile(str(tmp_path))

    class Full(io.BytesIO):
        def write(self, content):
            raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(type(file._records._path), 'open', lambda *_: Full())
    with pytest.raises(OSError, match=r'No space left on device: .*events\.out\.tfevents') as error:
        file.scalars(1, {'loss': 1.0})
    assert error.value.errno == errno.ENOSPC


def test_without_the_package_a_line_says_so(tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.partition('.')[0] == 'tensorboard']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'tensorboard', None)
    log = Log(str(tmp_path), total_steps=1, tensorboard=True)
    log.scalars(1, {'loss': 1.0})
    log.images(1, {'views': np.zeros((1, 2, 2, 3))})
    log.close()
    assert 'No TensorBoard events: the package tensorboard is not installed.' in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ['metrics.jsonl']
