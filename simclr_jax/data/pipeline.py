"""The host's input pipeline in tf.data. Behind the TensorFlow door: imported only when used.

The order of the images is a function of (seed, step) alone, their pixels a function of (seed, epoch, index). Neither
depends on the number of processes. The run's images form one endless row: position n is rank n % N of epoch n // N. A
pseudo-random permutation of each epoch maps ranks to images. Resuming means starting at a later position. Streamed
splits have another order, see streams.py.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from simclr_jax.augment import host
from simclr_jax.augment.policy import CENTER_CROP_PROPORTION, Policy
from simclr_jax.data import streams
from simclr_jax.data.select import select
from simclr_jax.data.spec import Batch, DataError, Decoded, Encoded, Examples, Files, Reading, Share, Streamed

# Images that are tried in the place of an unreadable file, itself included.
SUBSTITUTES = 8


class TrainBatches(Iterator[Batch]):
    """Endless batches of augmented views. The module's docstring describes their order.

    Args:
        examples: Split to read.
        policy: Augmentation.
        batch_size: Images per global batch, a multiple of share.count.
        seed: Seed of order and augmentation.
        start_step: Step of the first batch.
        share: Rows of this process.
        max_unreadable: Tolerated share of the split's files that are not images, in [0, 1].
        as_bytes: Whether views are uint8, a quarter of the size, for devices that continue the augmentation.
        reading: Threads and buffers.

    Attributes:
        unreadable: Paths of the files met so far that are not images. Another image took the place of each.

    Raises:
        DataError: More files than `max_unreadable` allows are not images. Raised by `next`.
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
        self._examples = examples
        self._max_unreadable = max_unreadable
        self._unreadable: dict[int, str] = {}
        rows = batch_size // share.count
        dataset = _training_rows(examples, batch_size, seed, start_step, share, reading)

        def make_views(row):
            pixel_seed = _pixel_seed(seed, row['epoch'], row['index'])
            views = host.augment(row['image'], pixel_seed, policy, as_bytes=as_bytes)
            index, wanted = (tf.cast(row[name], tf.int32) for name in ('index', 'wanted'))
            return {'views': views, 'label': row['label'], 'index': index, 'wanted': wanted}

        dataset = dataset.map(make_views, num_parallel_calls=_tuned(reading.parallel_calls))
        self._rows = _batches(dataset, rows, reading)

    @property
    def unreadable(self) -> list[str]:
        """Paths of the files met so far that are not images, sorted."""
        return sorted(self._unreadable.values())

    def __next__(self) -> Batch:
        batch = next(self._rows)
        wanted = batch.pop('wanted')
        for index in wanted[wanted != batch['index']]:
            assert isinstance(self._examples.content, Files), 'only files are replaced'
            self._unreadable[int(index)] = self._examples.content.paths[int(index)]
        is_over = len(self._unreadable) > self._max_unreadable * self._examples.size
        if is_over or np.any(batch['index'] < 0):
            raise DataError(
                f'{len(self._unreadable)} of {self._examples.size} files of {self._examples.name} are not '
                f'readable images, more than data.max_unreadable={self._max_unreadable} allows; remove them, '
                'or raise it:\n  ' + '\n  '.join(self.unreadable)
            )
        batch['mask'] = np.ones(len(wanted), np.float32)
        return batch


def eval_batches(
    examples: Examples,
    image_size: int,
    *,
    batch_size: int,
    kept: float = CENTER_CROP_PROPORTION,
    share: Share = Share(),
    limit: int | None = None,
) -> Iterator[Batch]:
    """Every image once, in the order of the split, as one view: SimCLR's central crop for evaluation.

    Files that are not images are left out. The last batches are filled with rows of mask 0, so that all processes have
    the same number of batches.

    Args:
        examples: Split to read.
        image_size: Height and width of the view, in pixels.
        batch_size: Images per global batch, a multiple of share.count.
        kept: Share of the shorter side in the crop, see `host.center_crop`.
        share: Rows of this process.
        limit: Number of images, the first of the split. None means all.
    """
    size = examples.size if limit is None else min(limit, examples.size)
    rows = batch_size // share.count
    num_rows = -(-size // batch_size) * rows

    def make_row(index, image, label):
        view = host.center_crop(image, image_size, kept)
        return {'views': view[None], 'label': label, 'mask': tf.constant(1.0), 'index': tf.cast(index, tf.int32)}

    # Everything happens in one map. On small images, the calls of several maps would cost as much as the decoding.
    content = examples.content
    if isinstance(content, Streamed):
        label_shape = ()
        stored = streams.stored_rows(content).take(size)
        dataset = streams.places(stored, batch_size, share.rows(batch_size))

        def read_row(index, record):
            file, label = content.parse(record)
            return make_row(index, decode(file), label)

        dataset = dataset.map(read_row, num_parallel_calls=tf.data.AUTOTUNE)
    else:
        assert examples.labels is not None, 'only streamed splits have unread labels'
        label_shape = examples.labels.shape[1:]
        labels, image_of = tf.constant(examples.labels), _image_reader(examples)
        dataset = streams.places(tf.data.Dataset.range(size), batch_size, share.rows(batch_size))
        dataset = dataset.map(
            lambda index: make_row(index, image_of(index), tf.gather(labels, index)),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
    if isinstance(content, Files):
        dataset = dataset.ignore_errors()
    padding = {
        'views': np.zeros([1, image_size, image_size, 3], np.float32),
        'label': np.full(label_shape, -1, np.int32),
        'mask': np.float32(0),
        'index': np.int32(-1),
    }
    dataset = dataset.concatenate(tf.data.Dataset.from_tensors(padding).repeat(num_rows)).take(num_rows)
    return _batches(dataset, rows)


def images_at(examples: Examples, indices: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Chosen images in their own sizes, each once, in the order of the split.

    Files that are not images are left out. A streamed split is read up to the last chosen image.

    Args:
        examples: Split to read.
        indices: Indices of images in the split.

    Yields:
        (index, uint8 [H, W, 3]), one pair per image.
    """
    wanted = np.unique(np.asarray(indices, np.int64))
    content = examples.content
    if isinstance(content, Streamed):
        records = streams.stored_rows(content)
        # TensorFlow's type stubs know only predicates of a single component.
        records = records.filter(lambda index, _: tf.reduce_any(index == wanted))  # pyright: ignore[reportArgumentType]
        dataset = records.take(len(wanted)).map(lambda index, record: (index, decode(content.parse(record)[0])))
    else:
        image_of = _image_reader(select(examples, wanted))
        dataset = tf.data.Dataset.from_tensor_slices(wanted).enumerate()
        dataset = dataset.map(lambda place, index: (index, image_of(place)))
    if isinstance(content, Files):
        dataset = dataset.ignore_errors()
    for index, image in dataset.as_numpy_iterator():
        yield int(index), image


def decode_all(examples: Examples, most_bytes: float) -> np.ndarray:
    """Decodes all images of a split whose files are in memory.

    Args:
        examples: Split to read.
        most_bytes: Largest size of the result, in bytes.

    Returns:
        uint8 [N, H, W, 3].

    Raises:
        DataError: The images have several sizes, or take more than `most_bytes`.
    """
    dataset = tf.data.Dataset.range(examples.size).map(_image_reader(examples), num_parallel_calls=tf.data.AUTOTUNE)
    decoded = dataset.as_numpy_iterator()
    first = next(decoded)
    if examples.size * first.nbytes > most_bytes:
        raise DataError(f'{examples.name} takes {examples.size * first.nbytes:,} bytes, more than {most_bytes:,}')
    images = np.empty((examples.size, *first.shape), np.uint8)
    for index, image in enumerate(itertools.chain([first], decoded)):
        if image.shape != first.shape:
            raise DataError(
                f'{examples.name} has images of several sizes, {first.shape[:2]} and {image.shape[:2]}; choose '
                'data.feed=hybrid'
            )
        images[index] = image
    return images


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


def _training_rows(examples, batch_size, seed, start_step, share, reading) -> tf.data.Dataset:
    """Rows of {'epoch', 'wanted', 'index', 'image', 'label'} in the run's order."""
    calls = _tuned(reading.parallel_calls)
    if isinstance(examples.content, Streamed):
        order = {'batch_size': batch_size, 'seed': seed, 'start_step': start_step, 'share': share}
        rows = streams.training_rows(examples.content, **order, parallel_calls=calls)
        return rows.map(functools.partial(_decode_record, examples.content.parse), num_parallel_calls=calls)
    size = examples.size
    tries = SUBSTITUTES if isinstance(examples.content, Files) else 1

    def index_of(rank, epoch):
        key = tf.stack([tf.constant(seed, tf.int64), epoch])
        return streams.index_shuffle(rank, key, size - 1)

    def choose(position):
        epoch, rank = position // size, position % size
        # The substitute is half an epoch away, so that it is not in the same batch already.
        ranks = [(rank + number * (size // 2 + 1)) % size for number in range(tries)]
        return epoch, tf.stack([index_of(rank, epoch) for rank in ranks])

    return _read(_positions(batch_size, share, start_step).map(choose), examples, calls)


def _read(positions: tf.data.Dataset, examples: Examples, calls: int) -> tf.data.Dataset:
    """Reads the first readable candidate of each row.

    Args:
        positions: Rows (epoch, candidate indices).
        examples: Split to read, not streamed.
        calls: Rows that are read in parallel.

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

    def read_file(first, candidates):
        tries = tf.data.Dataset.from_tensor_slices(candidates).map(lambda index: (index, image_of(index)))
        nothing = tf.data.Dataset.from_tensors((tf.constant(-1, tf.int64), tf.zeros([1, 1, 3], tf.uint8)))
        found = tries.ignore_errors().concatenate(nothing).take(1)
        return found.map(lambda index, image: row(first, candidates[0], index, image))

    if isinstance(examples.content, Files):
        files = 16 if calls == tf.data.AUTOTUNE else calls
        # TensorFlow's type stubs know only functions of a single component.
        return positions.interleave(
            read_file,  # pyright: ignore[reportArgumentType]
            files,
            num_parallel_calls=calls,
            deterministic=True,
        )
    return positions.map(read, num_parallel_calls=calls)


def _image_reader(examples: Examples) -> Callable[[tf.Tensor], tf.Tensor]:
    """Builds the function index -> uint8 [H, W, 3] of a split that is not streamed."""
    content = examples.content
    # The arrays are captured as tensors. As constants of the graph they would be copied into it.
    if isinstance(content, Decoded):
        images = tf.constant(content.images)
        return lambda index: tf.gather(images, index)
    if isinstance(content, Encoded):
        files = tf.constant(np.array(content.files, object))
        return lambda index: decode(tf.gather(files, index))
    assert isinstance(content, Files)
    paths = tf.constant(content.paths)
    return lambda index: decode(tf.io.read_file(tf.gather(paths, index)))


def decode(file: tf.Tensor) -> tf.Tensor:
    """Decodes JPEG, PNG, GIF (first frame), BMP or WebP to uint8 [H, W, 3]. Grey is repeated, alpha dropped."""
    image = tf.cond(
        _is_webp_with_alpha(file),
        lambda: tf.image.decode_image(file, channels=4, expand_animations=False)[..., :3],
        lambda: tf.image.decode_image(file, channels=3, expand_animations=False),
    )
    image.set_shape([None, None, 3])
    return image


def _is_webp_with_alpha(file: tf.Tensor) -> tf.Tensor:
    """Whether a file is a WebP image with alpha, which needs four channels.

    TensorFlow decodes WebP with all of its channels or not at all. In other formats it drops the alpha itself. With
    channels=0 (automatic) it writes out of bounds at an animation without alpha. A file too short for this header
    raises an error, like any file that is not an image.
    """
    kind = tf.strings.substr(file, 8, 8)
    # The bit 0x10 marks alpha in both headers (RFC 9649). The third kind, plain lossy, has no alpha.
    flags = tf.strings.substr(file, tf.where(kind == 'WEBPVP8L', 24, 20), 1)
    has_bit = tf.bitwise.bitwise_and(tf.io.decode_raw(flags, tf.uint8)[0], 0x10) > 0
    return has_bit & ((kind == 'WEBPVP8L') | (kind == 'WEBPVP8X'))


def _decode_record(parse, epoch, index, record):
    file, label = parse(record)
    return {'epoch': epoch, 'wanted': index, 'index': index, 'image': decode(file), 'label': label}
