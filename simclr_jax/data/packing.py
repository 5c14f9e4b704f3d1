"""Writes packed data sets: each image once made smaller, in shards. Behind the TensorFlow door: imported when used.

A shard is written beside its place, read back, and then renamed. An index of it is written after that. So a packing
that was interrupted goes on with the first shard that has no index. When all shards are there, their indices become the
index of the split, which marks it as complete.
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import simplejpeg
import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from simclr_jax.config import ConfigError
from simclr_jax.data import images, streams
from simclr_jax.data.packed import INDEX, Index, read_index
from simclr_jax.data.reader import check_unreadable, in_order, read_file
from simclr_jax.data.spec import DataError, Decoded, Examples, Streamed

# Images of a shard, if there are not too many shards then.
_SHARD_IMAGES, _MOST_SHARDS = 256, 256
# Bytes before the content of a TFRecord: its length, and a checksum of that.
_RECORD_HEADER = 12
# Name of the data set for TensorFlow Datasets, a part of the names of its shards.
_NAME = 'packed'


@dataclasses.dataclass(frozen=True)
class Packing:
    """How images are packed.

    Attributes:
        side: Shorter side of a packed image, in pixels. An image that is not larger keeps its file as it is.
        quality: JPEG quality of the others, in 1..100.
        max_unreadable: Tolerated share of images that are not readable, in [0, 1].
    """

    side: int
    quality: int
    max_unreadable: float


def pack(
    examples: Examples, out: epath.Path, split: str, how: Packing, progress: Callable[[int], None] = lambda count: None
) -> Index:
    """Packs a split, or goes on with a packing of it.

    Args:
        examples: Split to pack, with at most one label per image.
        out: Directory of the packed data set, local or gs://.
        split: Name of the split.
        how: Size and quality.
        progress: Function that receives numbers of images as they are done, also of those that were there.

    Returns:
        The index of the split.

    Raises:
        ConfigError: The directory holds this split with other settings or of another source.
        DataError: Too many images are not readable, or a shard reads back otherwise than it was written.
    """
    if examples.is_multi_label:
        raise DataError(
            f'{examples.name} has several labels per image, and packed images have one; such data sets are small '
            'enough to stay in memory as they are'
        )
    out.mkdir(parents=True, exist_ok=True)
    whole = out / f'{split}{INDEX}'
    settings = _settings(examples, how)
    if whole.exists():
        index = read_index(whole)
        _check_settings(index, settings, whole)
        progress(examples.size)
        return index
    count = min(max(examples.size // _SHARD_IMAGES, 1), _MOST_SHARDS)
    edges = np.linspace(0, examples.size, count + 1).astype(int).tolist()
    names = [f'{_NAME}-{split}.tfrecord-{number:05}-of-{count:05}' for number in range(count)]
    parts = [out / f'{name}.part.parquet' for name in names]
    found = {}
    for number, part in enumerate(parts):
        if part.exists():
            found[number] = read_index(part)
            _check_settings(found[number], settings, part)
            progress(edges[number + 1] - edges[number])
    missing = [number for number in range(count) if number not in found]
    source = _Source(examples, how)
    for number in missing:
        shard = _write_shard(out / names[number], source, edges[number], edges[number + 1], progress)
        shard = dataclasses.replace(shard, description=settings | shard.description)
        unreadable = [name for index in (*found.values(), shard) for name in index.description['unreadable']]
        check_unreadable(examples, unreadable, how.max_unreadable)
        shard.write(parts[number])
        found[number] = shard
    index = _joined([found[number] for number in range(count)], names)
    _describe(out, split, index, [edges[number + 1] - edges[number] for number in range(count)])
    index.write(whole)
    for part in parts:
        part.unlink()
    return index


def _settings(examples: Examples, how: Packing) -> dict[str, Any]:
    return {
        'source': examples.name,
        'images': examples.size,
        'side': how.side,
        'quality': how.quality,
        'class_names': list(examples.class_names),
    }


def _check_settings(index: Index, settings: dict[str, Any], path: epath.Path) -> None:
    """Raises ConfigError if an index was written with other settings."""
    different = [name for name, value in settings.items() if index.description[name] != value]
    if different:
        before = ', '.join(f'{name}={_shown(index.description[name])}' for name in different)
        wanted = ', '.join(f'{name}={_shown(settings[name])}' for name in different)
        raise ConfigError([f'{path} was packed with {before}, now {wanted}; choose an empty directory for --out'])


def _shown(value: Any) -> str:
    return f'{len(value)} names' if isinstance(value, list) else repr(value)


class _Source:
    """The images of a split, made smaller, in their order.

    Args:
        examples: Split to read.
        how: Size and quality.
    """

    def __init__(self, examples: Examples, how: Packing):
        self._examples, self._how = examples, how
        self._place, self._stream = 0, None

    def read(self, start: int, stop: int) -> Iterator[tuple[int, int, bytes | None]]:
        """(index, label, file) of the images from `start` to `stop`. The file is None if it is not a readable image."""
        return in_order(self._shrunk, self._streamed(start, stop) if self._is_streamed else self._chosen(start, stop))

    @property
    def _is_streamed(self) -> bool:
        return isinstance(self._examples.content, Streamed)

    def _chosen(self, start: int, stop: int) -> Iterator[tuple[int, int, bytes | None]]:
        labels = self._examples.labels
        assert labels is not None, 'only streamed splits have unread labels'
        for index in range(start, stop):
            yield index, int(labels[index]), None

    def _streamed(self, start: int, stop: int) -> Iterator[tuple[int, int, bytes | None]]:
        content = self._examples.content
        assert isinstance(content, Streamed)
        if self._stream is None or self._place != start:
            rows = streams.stored_rows(content, start)
            rows = rows.map(lambda index, record: (index, *content.parse(record)), tf.data.AUTOTUNE)
            self._stream, self._place = rows.prefetch(tf.data.AUTOTUNE).as_numpy_iterator(), start
        for _ in range(start, stop):
            index, file, label = next(self._stream)
            self._place += 1
            yield int(index), int(label), file

    def _shrunk(self, row: tuple[int, int, bytes | None]) -> tuple[int, int, bytes | None]:
        index, label, file = row
        content, most = self._examples.content, self._examples.max_pixels
        try:
            if isinstance(content, Decoded):
                return index, label, _encoded(content.images[index], self._how)
            if not isinstance(content, Streamed):
                file = read_file(content, index, most)
            assert file is not None
            return index, label, _shrink(file, most, self._how)
        except images.ImageError:
            return index, label, None


def _shrink(file: bytes, max_pixels: int, how: Packing) -> bytes:
    """The file of an image whose shorter side is at most `how.side`."""
    image = images.decode(file, max_pixels)
    if min(image.shape[:2]) <= how.side:
        return file
    scale = how.side / min(image.shape[:2])
    height, width = (max(how.side, round(scale * length)) for length in image.shape[:2])
    # With antialiasing, which the crops of a training do not have.
    small = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    return simplejpeg.encode_jpeg(np.asarray(small), how.quality, 'RGB', '420')


def _encoded(image: np.ndarray, how: Packing) -> bytes:
    """The file of an image in memory, uint8 [H, W, 3]. It loses nothing until it is made smaller."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'PNG')
    return _shrink(file.getvalue(), image.size, how)


def _write_shard(path: epath.Path, source: _Source, start: int, stop: int, progress: Callable[[int], None]) -> Index:
    """Writes the images from `start` to `stop`. The description of the index lacks the settings."""
    examples, partial = source._examples, path.with_name(f'{path.name}.partial')
    columns = {name: [] for name in ('shard', 'start', 'length', 'label', 'id')}
    unreadable, place, digest = [], 0, hashlib.blake2b(digest_size=16)
    with tf.io.TFRecordWriter(str(partial)) as writer:
        for index, label, file in source.read(start, stop):
            progress(1)
            if file is None:
                unreadable.append(examples.id_of(index))
                continue
            record = _record(file, label, examples.id_of(index))
            writer.write(record)
            values = (0, place + _RECORD_HEADER + record.index(file), len(file), label, examples.id_of(index))
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
            # A checksum follows the content.
            place += _RECORD_HEADER + len(record) + 4
            digest.update(file)
    _read_back(partial, place, len(columns['id']))
    partial.rename(path)
    description = {'shards': [path.name], 'sizes': [place], 'unreadable': unreadable, 'digest': digest.hexdigest()}
    types = {'shard': np.int32, 'start': np.int64, 'length': np.int32, 'label': np.int32}
    rows = {name: np.array(values, types[name]) if name in types else values for name, values in columns.items()}
    return Index(rows, description)


def _record(file: bytes, label: int, name: str) -> bytes:
    """A serialized tf.train.Example."""
    features = {
        'image': tf.train.Feature(bytes_list=tf.train.BytesList(value=[file])),
        'label': tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
        'id': tf.train.Feature(bytes_list=tf.train.BytesList(value=[name.encode(errors='surrogateescape')])),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def _read_back(path: epath.Path, size: int, count: int) -> None:
    """Raises DataError unless a shard holds what was written. TensorFlow compares the checksum of each record."""
    try:
        found = sum(1 for _ in tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
    except tf.errors.DataLossError as error:
        raise DataError(f'{path} reads back with damage: {error.message}; look at the disk, and pack again') from error
    if (found, path.stat().length) != (count, size):
        raise DataError(f'{path} reads back with {found} of {count} images; look at the disk, and pack again')


def _joined(parts: list[Index], names: list[str]) -> Index:
    """The index of a split from those of its shards."""
    numbers = [np.full(len(part.rows['id']), number, np.int32) for number, part in enumerate(parts)]
    rows = {name: np.concatenate([part.rows[name] for part in parts]) for name in ('start', 'length', 'label')}
    rows |= {'shard': np.concatenate(numbers), 'id': [name for part in parts for name in part.rows['id']]}
    digests = json.dumps([part.description['digest'] for part in parts])
    description = parts[0].description | {
        'shards': names,
        'sizes': [size for part in parts for size in part.description['sizes']],
        'unreadable': [name for part in parts for name in part.description['unreadable']],
        'digest': hashlib.blake2b(digests.encode(), digest_size=16).hexdigest(),
    }
    return Index(rows, description)


def _describe(out: epath.Path, split: str, index: Index, counts: list[int]) -> None:
    """Lets TensorFlow Datasets read the directory: `tfds.builder_from_directory(out)`."""
    class_names = index.description['class_names']
    label = tfds.features.ClassLabel(names=class_names) if class_names else tfds.features.Scalar(np.int64)
    features = {'image': tfds.features.Image(shape=(None, None, 3)), 'label': label, 'id': tfds.features.Text()}
    template = tfds.core.ShardedFileTemplate(
        template='{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
        data_dir=out,
        dataset_name=_NAME,
        split=split,
        filetype_suffix='tfrecord',
    )
    counts = np.bincount(index.rows['shard'], minlength=len(counts)).tolist()
    new = tfds.core.SplitInfo(
        name=split,
        shard_lengths=counts,
        num_bytes=sum(index.description['sizes']),
        filename_template=template,
    )
    before = tfds.builder_from_directory(out).info.splits.values() if (out / 'dataset_info.json').exists() else ()
    tfds.folder_dataset.write_metadata(
        data_dir=out,
        features=features,
        split_infos=[*(info for info in before if info.name != split), new],
        filename_template=template.replace(split=None),
        check_data=False,
    )
