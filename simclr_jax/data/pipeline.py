"""The host's input pipeline in tf.data. Behind the TensorFlow door: imported only when used.

The order of the images is a function of (seed, step) alone, their pixels a function of (seed, epoch, index). Neither
depends on the number of processes. The run's images form one endless row: position n is rank n % N of epoch n // N. A
pseudo-random permutation of each epoch maps ranks to images. Resuming means starting at a later position. Streamed
splits have another order, see streams.py.
"""

import os
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from simclr_jax.augment import host
from simclr_jax.augment.policy import Policy
from simclr_jax.config.fields import MAX_IMAGE_PIXELS
from simclr_jax.data import images, packed, streams
from simclr_jax.data.reader import Unreadable, substitutes
from simclr_jax.data.spec import Batch, Decoded, Encoded, Examples, Files, Packed, Reading, Share, Streamed

# Bytes of a PNG up to the end of its height.
_PNG_HEADER = 24
# Rows of an evaluation that leave tf.data together.
_EVAL_BLOCK = 32


class TrainBatches(Iterator[Batch]):
    """Endless batches of augmented views. The module's docstring describes their order.

    Args:
        examples: Split to read.
        policy: Augmentation.
        batch_size: Images per global batch, a multiple of share.count.
        seed: Seed of order and augmentation.
        start_step: Step of the first batch.
        share: Rows of this process.
        max_unreadable: Tolerated share of the split's images that are not readable, in [0, 1].
        as_bytes: Whether views are uint8, a quarter of the size, for devices that continue the augmentation.
        reading: Threads and buffers.

    Attributes:
        unreadable: Ids of the images met so far that are not readable. Another image took the place of each.

    Raises:
        DataError: More images than `max_unreadable` allows are not readable. Raised by `next`.
    """

    def __init__(
        self,
        examples: Examples,
        policy: Policy,
        *,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        share: Share = Share(),
        max_unreadable: float = 0.0,
        as_bytes: bool = False,
        reading: Reading = Reading(),
    ):
        self._met = Unreadable(examples, max_unreadable)
        self._step = start_step
        # Images in memory are rarely damaged. Until one is, they are read without looking for substitutes.
        self._is_careful = isinstance(examples.content, Files | Packed)

        def make_views(row):
            pixel_seed = _pixel_seed(seed, row['epoch'], row['index'])
            views = host.augment(row['image'], pixel_seed, policy, as_bytes=as_bytes)
            index, wanted = (tf.cast(row[name], tf.int32) for name in ('index', 'wanted'))
            return {'views': views, 'label': row['label'], 'index': index, 'wanted': wanted}

        # Without `self`: a circle of references would keep the threads of a pipeline that nobody reads any more.
        def open_rows(start_step: int, is_careful: bool) -> Iterator[Batch]:
            order = {'batch_size': batch_size, 'seed': seed, 'start_step': start_step, 'share': share}
            dataset = _training_rows(examples, **order, reading=reading, is_careful=is_careful)
            dataset = dataset.map(make_views, num_parallel_calls=_tuned(reading.parallel_calls))
            return _batches(dataset, batch_size // share.count, reading)

        self._open_rows = open_rows
        self._rows = open_rows(self._step, self._is_careful)

    @property
    def unreadable(self) -> list[str]:
        """Ids of the images met so far that are not readable, sorted."""
        return self._met.ids

    def __next__(self) -> Batch:
        batch = self._read()
        self._step += 1
        return self._met.checked(batch | {'mask': np.ones(len(batch['index']), np.float32)})

    def _read(self) -> Batch:
        try:
            return next(self._rows)
        except tf.errors.InvalidArgumentError:
            if self._is_careful:
                raise
            self._is_careful = True
            self._rows = self._open_rows(self._step, self._is_careful)
            return next(self._rows)


def streamed_views(
    examples: Examples, image_size: int, *, batch_size: int, kept: float, share: Share, size: int
) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
    """(view, index, label) of each readable image of a streamed split, the part of one process.

    Args:
        examples, image_size, batch_size, kept, share: See `reader.eval_batches`.
        size: Number of images, the first of the split.
    """
    content = examples.content
    assert isinstance(content, Streamed)

    # Everything happens in one map. On small images, the calls of several maps would cost as much as the decoding.
    def read(index, record):
        file, label = content.parse(record)
        return host.center_crop(decode(file, examples.max_pixels), image_size, kept), index, label

    rows = streams.places(streams.stored_rows(content).take(size), batch_size, share.rows(batch_size))
    rows = rows.map(read, num_parallel_calls=tf.data.AUTOTUNE).ignore_errors()
    for batch in rows.batch(_EVAL_BLOCK).prefetch(2).as_numpy_iterator():
        yield from zip(*batch, strict=True)


def streamed_files(
    examples: Examples, *, batch_size: int, seed: int, start_step: int, share: Share, reading: Reading
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(indices, labels, encoded images) of the endless batches of a streamed split, the rows of one process.

    Args:
        examples, batch_size, seed, start_step, share, reading: See `TrainBatches`.
    """
    content = examples.content
    assert isinstance(content, Streamed)
    calls = _tuned(reading.parallel_calls)
    order = {'batch_size': batch_size, 'seed': seed, 'start_step': start_step, 'share': share}

    def parse(_, index, record):
        file, label = content.parse(record)
        return index, label, file

    rows = streams.training_rows(content, **order, parallel_calls=calls).map(parse, num_parallel_calls=calls)
    batches = rows.batch(batch_size // share.count, drop_remainder=True).prefetch(1).as_numpy_iterator()
    # TensorFlow's type stubs know only rows of a single array.
    return batches  # pyright: ignore[reportReturnType]


def streamed_images(examples: Examples, wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(index, uint8 [H, W, 3]) of chosen readable images of a streamed split.

    Args:
        examples: Split to read, up to the last chosen image.
        wanted: Indices of images, each once.
    """
    content = examples.content
    assert isinstance(content, Streamed)
    rows = streams.stored_rows(content)
    # TensorFlow's type stubs know only predicates of a single component.
    rows = rows.filter(lambda index, _: tf.reduce_any(index == wanted))  # pyright: ignore[reportArgumentType]
    rows = rows.take(len(wanted)).map(
        lambda index, record: (index, decode(content.parse(record)[0], examples.max_pixels))
    )
    for index, image in rows.ignore_errors().as_numpy_iterator():
        yield int(index), image


def _batches(dataset: tf.data.Dataset, rows: int, reading: Reading = Reading()) -> Iterator[Batch]:
    dataset = dataset.batch(rows, drop_remainder=True).prefetch(_tuned(reading.prefetch))
    if reading.threads:
        options = tf.data.Options()
        options.threading.private_threadpool_size = reading.threads
        dataset = dataset.with_options(options)
    # TensorFlow's type stubs know only rows of a single array.
    return dataset.as_numpy_iterator()  # pyright: ignore[reportReturnType]


def _tuned(number: int) -> int:
    """The number in tf.data's notation: 0 becomes AUTOTUNE."""
    return number or tf.data.AUTOTUNE


def _positions(batch_size: int, share: Share, start_step: int = 0) -> tf.data.Dataset:
    """This process's positions in the endless row of images, int64, starting at the given step."""
    rows = batch_size // share.count
    counter = tf.data.Dataset.range(start_step * rows, np.iinfo(np.int64).max)
    return counter.map(lambda n: n // rows * batch_size + share.index * rows + n % rows)


def _pixel_seed(seed: int, epoch: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """Seed of an image's pixels, int32 [2]. It follows from image and epoch, not from the step.

    Args:
        seed: Seed of the run.
        epoch: Epoch, int64 scalar.
        index: Index of the image, int64 scalar. Another dtype would give another seed.
    """
    # TensorFlow's type stubs lack it.
    fold = tf.random.experimental.stateless_fold_in  # pyright: ignore[reportAttributeAccessIssue]
    return fold(fold(tf.constant([seed, 0], tf.int32), epoch), index)


def _training_rows(examples, batch_size, seed, start_step, share, reading, is_careful) -> tf.data.Dataset:
    """Rows of {'epoch', 'wanted', 'index', 'image', 'label'} in the run's order, see `_read`."""
    calls = _tuned(reading.parallel_calls)
    if isinstance(examples.content, Streamed):
        order = {'batch_size': batch_size, 'seed': seed, 'start_step': start_step, 'share': share}
        rows = streams.training_rows(examples.content, **order, parallel_calls=calls)
        return _read_records(rows, examples, calls, is_careful)
    size = examples.size
    aside = substitutes(size) if is_careful else [0]

    def index_of(rank, epoch):
        key = tf.stack([tf.constant(seed, tf.int64), epoch])
        return streams.index_shuffle(rank, key, size - 1)

    def choose(position):
        epoch, rank = position // size, position % size
        ranks = [(rank + distance) % size for distance in aside]
        return epoch, tf.stack([index_of(rank, epoch) for rank in ranks])

    return _read(_positions(batch_size, share, start_step).map(choose), examples, calls, is_careful)


def _read_records(rows: tf.data.Dataset, examples: Examples, calls: int, is_careful: bool) -> tf.data.Dataset:
    """Decodes the rows (epoch, index, record) of a streamed split. The result is that of `_read`."""
    content = examples.content
    assert isinstance(content, Streamed)

    def read(epoch, index, record):
        file, label = content.parse(record)
        image = decode(file, examples.max_pixels)
        return {'epoch': epoch, 'wanted': index, 'index': index, 'image': image, 'label': label}

    def read_carefully(epoch, index, record):
        nothing = {'epoch': epoch, 'wanted': index, 'index': tf.constant(-1, tf.int64)}
        nothing |= {'image': tf.zeros([1, 1, 3], tf.uint8), 'label': tf.constant(-1, tf.int32)}
        found = tf.data.Dataset.from_tensors((epoch, index, record)).map(read).ignore_errors()
        return found.concatenate(tf.data.Dataset.from_tensors(nothing)).take(1)

    return _side_by_side(rows, read_carefully, calls) if is_careful else rows.map(read, num_parallel_calls=calls)


def _side_by_side(rows: tf.data.Dataset, read, calls: int) -> tf.data.Dataset:
    """Applies a function that makes a dataset of one row, several at the same time."""
    files = 16 if calls == tf.data.AUTOTUNE else calls
    return rows.interleave(read, files, num_parallel_calls=calls, deterministic=True)


def _read(positions: tf.data.Dataset, examples: Examples, calls: int, is_careful: bool) -> tf.data.Dataset:
    """Reads the first readable candidate of each row.

    Args:
        positions: Rows (epoch, candidate indices).
        examples: Split to read, not streamed.
        calls: Rows that are read in parallel.
        is_careful: Whether to go on to the next candidate. Otherwise an unreadable image is an error.

    Returns:
        Rows of {'epoch', 'wanted', 'index', 'image', 'label'}. 'wanted' is the first candidate, 'index' the one that
        was read, or -1 where none can be read.
    """
    image_of = _image_reader(examples)
    assert examples.labels is not None, 'only streamed splits have unread labels'
    labels = tf.constant(examples.labels)

    def row(first, wanted, index, image):
        label = tf.where(index < 0, -1, tf.gather(labels, tf.maximum(index, 0)))
        return {'epoch': first, 'wanted': wanted, 'index': index, 'image': image, 'label': label}

    def read(first, candidates):
        return row(first, candidates[0], candidates[0], image_of(candidates[0]))

    def read_carefully(first, candidates):
        tries = tf.data.Dataset.from_tensor_slices(candidates).map(lambda index: (index, image_of(index)))
        nothing = tf.data.Dataset.from_tensors((tf.constant(-1, tf.int64), tf.zeros([1, 1, 3], tf.uint8)))
        found = tries.ignore_errors().concatenate(nothing).take(1)
        return found.map(lambda index, image: row(first, candidates[0], index, image))

    return (
        _side_by_side(positions, read_carefully, calls) if is_careful else positions.map(read, num_parallel_calls=calls)
    )


def _image_reader(examples: Examples) -> Callable[[tf.Tensor], tf.Tensor]:
    """Builds the function index -> uint8 [H, W, 3] of a split that is not streamed."""
    content, max_pixels = examples.content, examples.max_pixels
    # The arrays are captured as tensors. As constants of the graph they would be copied into it.
    if isinstance(content, Decoded):
        decoded = tf.constant(content.images)
        return lambda index: tf.gather(decoded, index)
    if isinstance(content, Encoded):
        files = tf.constant(np.array(content.files, object))
        return lambda index: decode(tf.gather(files, index), max_pixels)
    if isinstance(content, Packed):

        def read_packed(index):
            return tf.numpy_function(lambda number: packed.file_of(content, int(number)), [index], tf.string)

        return lambda index: decode(read_packed(index), max_pixels)
    assert isinstance(content, Files)
    # Names of files are bytes that need not be UTF-8.
    paths = tf.constant(np.array([os.fsencode(path) for path in content.paths], object))
    return lambda index: decode(tf.io.read_file(tf.gather(paths, index)), max_pixels)


def decode(file: tf.Tensor, max_pixels: int = MAX_IMAGE_PIXELS) -> tf.Tensor:
    """Decodes an image file to uint8 [H, W, 3], see `images.decode`. An unreadable one is an InvalidArgumentError.

    TensorFlow decodes JPEG and PNG, faster than Pillow. It reads the indices of a BMP's palette as grey, paints
    transparent colours of a GIF black, and refuses WebP animations.

    Args:
        file: Content of the file, a string.
        max_pixels: Largest number of pixels by the file's header.
    """

    def by_tensorflow(header):
        def decoded():
            with tf.control_dependencies([_check_pixels(header(file), max_pixels)]):
                return tf.io.decode_image(tf.identity(file), channels=3, expand_animations=False)

        return decoded

    def by_pillow():
        return tf.numpy_function(lambda content: images.decode(content, max_pixels), [file], tf.uint8)

    length = tf.strings.length(file)
    beginning = tf.strings.substr(file, 0, tf.minimum(length, 3))
    branches = [
        (beginning == b'\xff\xd8\xff', by_tensorflow(tf.image.extract_jpeg_shape)),
        ((beginning == b'\x89PN') & (length >= _PNG_HEADER), by_tensorflow(_png_shape)),
    ]
    image = tf.case(branches, default=by_pillow)
    image.set_shape([None, None, 3])
    return image


def _png_shape(file: tf.Tensor) -> tf.Tensor:
    """Height and width of a PNG, int32 [2]. They are unsigned, so that negative numbers are very large ones."""
    return tf.io.decode_raw(tf.strings.substr(file, 16, 8), tf.int32, little_endian=False)[::-1]


def _check_pixels(shape: tf.Tensor, max_pixels: int) -> tf.Operation:
    height, width = (tf.cast(tf.bitcast(side, tf.uint32), tf.float64) for side in (shape[0], shape[1]))
    return tf.debugging.assert_less_equal(height * width, tf.constant(max_pixels, tf.float64))
