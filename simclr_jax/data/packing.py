"""Writes packed data sets: each image once made smaller, in shards. Behind the TensorFlow door: imported when used.

A shard is written beside its place, read back, and then renamed. Its part of the index is written after that. So a
packing that was interrupted goes on with the first shard that has no part. When all are there, they become the index of
the split, which marks it as complete. The bytes follow from the images and settings alone, so that two packings at once
write the same files.
"""

import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import simplejpeg
import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from simclr_jax.config import ConfigError
from simclr_jax.config.paths import printable
from simclr_jax.config.whole_file import writer_name
from simclr_jax.data import images, streams
from simclr_jax.data.packed import INDEX, Index, read_index
from simclr_jax.data.reader import check_unreadable, in_order, read_file
from simclr_jax.data.spec import DataError, Decoded, Examples, Streamed

# Images of a shard, if there are not too many shards then.
_SHARD_IMAGES, _MOST_SHARDS = 256, 256
# Bytes before the content of a TFRecord, its length and a checksum of that, and the checksum after it.
_BEFORE_RECORD, _AFTER_RECORD = 12, 4
# Name of the data set for TensorFlow Datasets, a part of the names of its shards.
_NAME = 'packed'
# Ending of the part of an index.
_PART = '.part.parquet'
# What TensorFlow Datasets reads beside the shards.
_METADATA = ('dataset_info.json', 'features.json', 'label.labels.txt')
# Longest side of a JPEG that libjpeg writes.
_LONGEST = 65_500
# Errors of TensorFlow's files, as the system's.
_SYSTEM_ERRORS = (
    (tf.errors.ResourceExhaustedError, errno.ENOSPC),
    (tf.errors.PermissionDeniedError, errno.EACCES),
    (tf.errors.NotFoundError, errno.ENOENT),
)


@dataclasses.dataclass(frozen=True)
class Packing:
    """How images are packed.

    Attributes:
        side: Shorter side of a packed image, in pixels. A JPEG or PNG that is not larger keeps its file as it is.
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
        ConfigError: The directory holds other files, this split with other settings or of another source, or a split
            with other classes.
        DataError: Too many images are not readable, or a shard reads back otherwise than it was written.
    """
    if examples.is_multi_label:
        raise DataError(
            f'{examples.name} has several labels per image, and packed images have one; such data sets are small '
            'enough to stay in memory as they are'
        )
    out.mkdir(parents=True, exist_ok=True)
    plan = _Plan(examples, out, split, how)
    plan.check_directory()
    whole = out / f'{split}{INDEX}'
    if whole.exists():
        index = read_index(whole)
        plan.check(index, whole)
        progress(examples.size)
    else:
        index = _joined([plan.shard(number, progress) for number in range(plan.count)], plan.names)
        index.write(whole)
    _describe(out)
    for part in out.glob(f'{_NAME}-{split}.tfrecord-*{_PART}'):
        part.unlink(missing_ok=True)
    return index


class _Plan:
    """The shards of a split.

    Attributes:
        count: Number of shards.
        names: Their names.
    """

    def __init__(self, examples: Examples, out: epath.Path, split: str, how: Packing):
        self._examples, self._out, self._split, self._how = examples, out, split, how
        self.count = min(max(examples.size // _SHARD_IMAGES, 1), _MOST_SHARDS)
        self._edges = np.linspace(0, examples.size, self.count + 1).astype(int).tolist()
        self.names = [f'{_NAME}-{split}.tfrecord-{number:05}-of-{self.count:05}' for number in range(self.count)]
        self._settings = {
            'source': examples.name,
            'images': examples.size,
            'side': how.side,
            'quality': how.quality,
            'class_names': list(examples.class_names),
        }
        self._source = _Source(examples, how)
        self._unreadable: list[str] = []

    def check_directory(self) -> None:
        """Raises ConfigError if the directory holds files that do not belong to this packing."""
        names = sorted(path.name for path in self._out.iterdir())
        own = [name for name in names if name.startswith(f'{_NAME}-') or name.endswith(INDEX)]
        others = [name for name in names if name not in own and not (own and name in _METADATA)]
        if others:
            raise ConfigError([f'{printable(self._out)} holds {printable(others[0])}; choose an empty directory'])
        of_split = [name for name in own if name.startswith(f'{_NAME}-{self._split}.')]
        if any(not name.startswith(tuple(self.names)) for name in of_split):
            raise ConfigError(
                [f'{printable(self._out)} holds another packing of {self._split}; choose an empty directory']
            )
        for path in self._out.glob(f'*{INDEX}'):
            classes = read_index(path).description['class_names']
            if classes != self._settings['class_names']:
                raise ConfigError(
                    [f'{printable(path)} has {len(classes)} classes, and not those of {self._examples.name}; choose an '
                     'empty directory, or pack all splits by one command']
                )  # fmt: skip

    def check(self, index: Index, path: epath.Path) -> None:
        """Raises ConfigError if an index was written with other settings."""
        different = [name for name, value in self._settings.items() if index.description[name] != value]
        if different:
            before = ', '.join(f'{name}={_shown(index.description[name])}' for name in different)
            wanted = ', '.join(f'{name}={_shown(self._settings[name])}' for name in different)
            raise ConfigError(
                [f'{printable(path)} was packed with {before}, now {wanted}; choose an empty directory for --out']
            )

    def shard(self, number: int, progress: Callable[[int], None]) -> Index:
        """The part of the index of a shard, which is written where it is missing."""
        path, start, stop = self._out / self.names[number], *self._edges[number : number + 2]
        part = path.with_name(f'{path.name}{_PART}')
        if part.exists():
            index = read_index(part)
            self.check(index, part)
            progress(stop - start)
            self._unreadable += index.description['unreadable']
            return index
        partial = path.with_name(f'{path.name}.{writer_name()}.partial')
        try:
            with _system_errors(path):
                index = _write(partial, path.name, self._source.read(start, stop), progress, self._examples.id_of)
                self._unreadable += index.description['unreadable']
                check_unreadable(self._examples, self._unreadable, self._how.max_unreadable, '--max-unreadable')
                _read_back(partial, index)
            partial.replace(path)
        finally:
            with contextlib.suppress(Exception):
                partial.unlink(missing_ok=True)
        index = Index(index.rows, self._settings | index.description)
        index.write(part)
        return index


def _shown(value: Any) -> str:
    return f'{len(value)} names' if isinstance(value, list) else repr(value)


# (index, label, file) of an image. The file is None before it is read, and where it is no readable image.
_Row = tuple[int, int, bytes | None]


class _Source:
    """The images of a split, made smaller, in their order.

    Args:
        examples: Split to read.
        how: Size and quality.
    """

    def __init__(self, examples: Examples, how: Packing):
        self._examples, self._how = examples, how
        self._place, self._stream = 0, None

    def read(self, start: int, stop: int) -> Iterator[_Row]:
        """The images from `start` to `stop`."""
        is_streamed = isinstance(self._examples.content, Streamed)
        return in_order(self._shrunk, (self._streamed if is_streamed else self._chosen)(start, stop))

    def _chosen(self, start: int, stop: int) -> Iterator[_Row]:
        labels = self._examples.labels
        assert labels is not None, 'only streamed splits have unread labels'
        for index in range(start, stop):
            yield index, int(labels[index]), None

    def _streamed(self, start: int, stop: int) -> Iterator[_Row]:
        content = self._examples.content
        assert isinstance(content, Streamed)
        if self._stream is None or self._place != start:
            rows = streams.stored_rows(content, start)
            rows = rows.map(lambda index, record: (index, *content.parse(record)), tf.data.AUTOTUNE)
            self._stream, self._place = rows.prefetch(tf.data.AUTOTUNE).as_numpy_iterator(), start
        for _ in range(start, stop):
            try:
                index, file, label = next(self._stream)
            except tf.errors.DataLossError as error:
                raise DataError(f'{self._examples.name} is damaged: {error.message}; prepare it again') from error
            self._place += 1
            yield int(index), int(label), file

    def _shrunk(self, row: _Row) -> _Row:
        index, label, file = row
        content, most = self._examples.content, self._examples.max_pixels
        try:
            if isinstance(content, Decoded):
                return index, label, _fitted(content.images[index], b'', self._how)
            if not isinstance(content, Streamed):
                file = read_file(content, index, most)
            assert file is not None
            return index, label, _fitted(images.decode(file, most), file, self._how)
        except images.ImageError:
            return index, label, None


def _fitted(image: np.ndarray, file: bytes, how: Packing) -> bytes:
    """The file of an image uint8 [H, W, 3] whose shorter side is at most `how.side`.

    A small one keeps its JPEG or PNG, or becomes a PNG, which loses nothing.
    """
    shortest, longest = sorted(image.shape[:2])
    scale = min(1.0, how.side / shortest, _LONGEST / longest)
    if scale == 1.0:
        return file if file.startswith((b'\xff\xd8\xff', b'\x89PNG')) else _png(image)
    height, width = (min(_LONGEST, max(1, round(scale * length))) for length in image.shape[:2])
    # With antialiasing, which the crops of a training do not have.
    small = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    return simplejpeg.encode_jpeg(np.asarray(small), how.quality, 'RGB', '420')


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'PNG')
    return file.getvalue()


@contextlib.contextmanager
def _system_errors(path: epath.Path) -> Iterator[None]:
    """Turns the errors of TensorFlow's local files into the system's, which name their cure."""
    try:
        yield
    except tf.errors.OpError as error:
        number = next((number for kind, number in _SYSTEM_ERRORS if isinstance(error, kind)), None)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), os.fspath(path)) from error


def _write(
    path: epath.Path, name: str, rows: Iterator[_Row], progress: Callable[[int], None], id_of: Callable[[int], str]
) -> Index:
    """Writes a shard. The description of its index lacks the settings.

    Args:
        path: File to write.
        name: Name of the shard.
        rows: Its images.
        progress: Function that receives numbers of images.
        id_of: Function of the index of an image.
    """
    columns = {column: [] for column in ('shard', 'start', 'length', 'label', 'id')}
    unreadable, place, digest = [], 0, hashlib.blake2b(digest_size=16)
    with tf.io.TFRecordWriter(os.fspath(path)) as writer:
        for index, label, file in rows:
            progress(1)
            if file is None:
                unreadable.append(id_of(index))
                continue
            record = _record(file, label, id_of(index))
            writer.write(record)
            values = (0, place + _BEFORE_RECORD + record.index(file), len(file), label, id_of(index))
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
            place += _BEFORE_RECORD + len(record) + _AFTER_RECORD
            digest.update(file)
    types = {'shard': np.int32, 'start': np.int64, 'length': np.int32, 'label': np.int32}
    arrays = {column: np.array(values, types[column]) for column, values in columns.items() if column in types}
    description = {'shards': [name], 'sizes': [place], 'unreadable': unreadable, 'digest': digest.hexdigest()}
    return Index(arrays | {'id': columns['id']}, description)


def _record(file: bytes, label: int, name: str) -> bytes:
    """A serialized tf.train.Example, the same bytes in every process."""
    features = {
        'image': tf.train.Feature(bytes_list=tf.train.BytesList(value=[file])),
        'label': tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
        'id': tf.train.Feature(bytes_list=tf.train.BytesList(value=[name.encode(errors='surrogateescape')])),
    }
    example = tf.train.Example(features=tf.train.Features(feature=features))
    return example.SerializeToString(deterministic=True)


def _read_back(path: epath.Path, index: Index) -> None:
    """Raises DataError unless a shard holds the images where its index says.

    TensorFlow compares the checksum of each record.
    """
    starts, lengths = index.rows['start'].tolist(), index.rows['length'].tolist()
    digest, place, count = hashlib.blake2b(digest_size=16), 0, 0
    try:
        for record in tf.data.TFRecordDataset(os.fspath(path)).as_numpy_iterator():
            if count < len(starts):
                first = starts[count] - place - _BEFORE_RECORD
                digest.update(bytes(record[first : first + lengths[count]]))
            place, count = place + _BEFORE_RECORD + len(record) + _AFTER_RECORD, count + 1
    except tf.errors.DataLossError as error:
        raise DataError(f'{path} reads back with damage: {error.message}; look at the disk, and pack again') from error
    if (count, digest.hexdigest()) != (len(starts), index.description['digest']):
        raise DataError(f'{path} reads back with other images; look at the disk, and pack again')


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


def _describe(out: epath.Path) -> None:
    """Lets TensorFlow Datasets read the splits of a directory: `tfds.builder_from_directory(out)`."""
    template = tfds.core.ShardedFileTemplate(
        template='{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
        data_dir=out,
        dataset_name=_NAME,
        filetype_suffix='tfrecord',
    )
    splits, class_names = [], []
    for path in sorted(out.glob(f'*{INDEX}')):
        index, split = read_index(path), path.name.removesuffix(INDEX)
        class_names = index.description['class_names']
        shards = index.description['shards']
        split_info = tfds.core.SplitInfo(
            name=split,
            shard_lengths=np.bincount(index.rows['shard'], minlength=len(shards)).tolist(),
            num_bytes=sum(index.description['sizes']),
            filename_template=template.replace(split=split),
        )
        splits.append(split_info)
    label = tfds.features.ClassLabel(names=class_names) if class_names else tfds.features.Scalar(np.int64)
    tfds.folder_dataset.write_metadata(
        data_dir=out,
        features={'image': tfds.features.Image(shape=(None, None, 3)), 'label': label, 'id': tfds.features.Text()},
        split_infos=splits,
        filename_template=template,
        check_data=False,
    )
