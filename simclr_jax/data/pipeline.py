"""The host's input pipeline in tf.data. Behind the TensorFlow door: imported only when used.

Which image stands where is a function of (seed, step) alone, its pixels of (seed, epoch, index), whatever the
number of processes: the run's images form one endless row, position n is rank n % N of epoch n // N, and a
pseudo-random permutation of each epoch maps ranks to images. Resuming is starting at another position. Splits that
are streamed have an order of their own (streams.py).
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

# An unreadable file's place is taken by another image; so many are tried.
SUBSTITUTES = 8


class TrainBatches(Iterator[Batch]):
    """Endless batches of augmented views; see the module's text for their order.

    Args:
        examples: the split.
        policy: the augmentation.
        batch_size: images of the global batch, a multiple of share.count.
        seed: of order and augmentation.
        start_step: the first batch is that of this step.
        share: this process's rows.
        max_unreadable: share of the split's files that may be no images.
        as_bytes: views are uint8, a quarter of the size, for devices that go on with the augmentation.
        reading: threads and buffers.

    Attributes:
        unreadable: paths of the files met so far that are no images; another image took the place of each.
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
            return {name: row[name] for name in ('label', 'index', 'wanted')} | {'views': views}

        dataset = dataset.map(make_views, num_parallel_calls=_tuned(reading.parallel_calls))
        self._rows = _batches(dataset, rows, reading)

    @property
    def unreadable(self) -> list[str]:
        """Paths of the files met so far that are no images, sorted."""
        return sorted(self._unreadable.values())

    def __next__(self) -> Batch:
        batch = next(self._rows)
        wanted = batch.pop('wanted')
        for index in wanted[wanted != batch['index']]:
            self._unreadable[int(index)] = self._examples.content.paths[index]
        is_over = len(self._unreadable) > self._max_unreadable * self._examples.size
        if is_over or np.any(batch['index'] < 0):
            raise DataError(
                f'{len(self._unreadable)} of {self._examples.size} files of {self._examples.name} are no '
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

    Files that are no images are left out. The last batches are filled up with rows of mask 0, so that all
    processes have the same number of batches.

    Args:
        examples: the split.
        image_size: height and width of the view, pixels.
        batch_size: images of the global batch, a multiple of share.count.
        kept: share of the shorter side in the crop, see `host.center_crop`.
        share: this process's rows.
        limit: only the first so many images.
    """
    size = examples.size if limit is None else min(limit, examples.size)
    rows = batch_size // share.count
    num_rows = -(-size // batch_size) * rows

    def make_row(index, image, label):
        view = host.center_crop(image, image_size, kept)
        return {'views': view[None], 'label': label, 'mask': tf.constant(1.0), 'index': index}

    # Everything in one map: on small images the calls of several would cost as much as the decoding.
    if isinstance(examples.content, Streamed):
        label_shape = ()
        stored = streams.stored_rows(examples.content).take(size)
        dataset = streams.places(stored, batch_size, share.rows(batch_size))

        def read_row(index, record):
            file, label = examples.content.parse(record)
            return make_row(index, decode(file), label)

        dataset = dataset.map(read_row, num_parallel_calls=tf.data.AUTOTUNE)
    else:
        label_shape = examples.labels.shape[1:]
        labels, image_of = tf.constant(examples.labels), _image_reader(examples)
        dataset = streams.places(tf.data.Dataset.range(size), batch_size, share.rows(batch_size))
        dataset = dataset.map(
            lambda index: make_row(index, image_of(index), tf.gather(labels, index)),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
    if isinstance(examples.content, Files):
        dataset = dataset.ignore_errors()
    padding = {
        'views': np.zeros([1, image_size, image_size, 3], np.float32),
        'label': np.full(label_shape, -1, np.int32),
        'mask': np.float32(0),
        'index': np.int64(-1),
    }
    dataset = dataset.concatenate(tf.data.Dataset.from_tensors(padding).repeat(num_rows)).take(num_rows)
    return _batches(dataset, rows)


def images_at(examples: Examples, indices: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Chosen images as they are, (index, uint8 [H, W, 3]) one after the other, each once, in the order of the split.

    Files that are no images are left out. A streamed split is read up to the last of the chosen ones.

    Args:
        examples: the split.
        indices: of images in it.
    """
    wanted = np.unique(np.asarray(indices, np.int64))
    if isinstance(examples.content, Streamed):
        records = streams.stored_rows(examples.content)
        records = records.filter(lambda index, _: tf.reduce_any(index == wanted)).take(len(wanted))
        dataset = records.map(lambda index, record: (index, decode(examples.content.parse(record)[0])))
    else:
        image_of = _image_reader(select(examples, wanted))
        dataset = tf.data.Dataset.from_tensor_slices(wanted).enumerate()
        dataset = dataset.map(lambda place, index: (index, image_of(place)))
    if isinstance(examples.content, Files):
        dataset = dataset.ignore_errors()
    for index, image in dataset.as_numpy_iterator():
        yield int(index), image


def decode_all(examples: Examples, most_bytes: float) -> np.ndarray:
    """All images of a split whose files are in memory, uint8 [N, H, W, 3].

    Args:
        examples: the split.
        most_bytes: that they may take.

    Raises:
        DataError: they are of several sizes, or take more.
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
    return dataset.as_numpy_iterator()


def _tuned(number: int) -> int:
    """As tf.data writes it."""
    return number or tf.data.AUTOTUNE


def _positions(batch_size: int, share: Share, start_step: int = 0) -> tf.data.Dataset:
    """This process's positions in the endless row of images, int64, from the given step on."""
    rows = batch_size // share.count
    counter = tf.data.Dataset.range(start_step * rows, np.iinfo(np.int64).max)
    return counter.map(lambda n: n // rows * batch_size + share.index * rows + n % rows)


def _pixel_seed(seed: int, epoch: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """int32 [2], different for each image and epoch, whatever the step in which it comes."""
    fold = tf.random.experimental.stateless_fold_in
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
        return tf.random.experimental.index_shuffle(rank, key, size - 1)

    def choose(position):
        epoch, rank = position // size, position % size
        # Half an epoch away, so that the substitute is not in the same batch already.
        ranks = [(rank + number * (size // 2 + 1)) % size for number in range(tries)]
        return epoch, tf.stack([index_of(rank, epoch) for rank in ranks])

    return _read(_positions(batch_size, share, start_step).map(choose), examples, calls)


def _read(positions: tf.data.Dataset, examples: Examples, calls: int) -> tf.data.Dataset:
    """Rows of (epoch, candidate indices) -> rows with the first candidate that can be read.

    The row's 'epoch' is passed on, 'wanted' is the first candidate, and where none can be read 'index' is -1.
    """
    image_of = _image_reader(examples)
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
        return positions.interleave(read_file, files, num_parallel_calls=calls, deterministic=True)
    return positions.map(read, num_parallel_calls=calls)


def _image_reader(examples: Examples) -> Callable[[tf.Tensor], tf.Tensor]:
    """The function index -> uint8 [H, W, 3] of a split that is not streamed."""
    content = examples.content
    # Captured as tensors: constants of the graph would be copied into it.
    if isinstance(content, Decoded):
        images = tf.constant(content.images)
        return lambda index: tf.gather(images, index)
    if isinstance(content, Encoded):
        files = tf.constant(np.array(content.files, object))
        return lambda index: decode(tf.gather(files, index))
    paths = tf.constant(content.paths)
    return lambda index: decode(tf.io.read_file(tf.gather(paths, index)))


def decode(file: tf.Tensor) -> tf.Tensor:
    """JPEG, PNG, GIF (first frame), BMP or WebP -> uint8 [H, W, 3]; grey is repeated, alpha dropped."""
    image = tf.cond(
        _is_webp_with_alpha(file),
        lambda: tf.image.decode_image(file, channels=4, expand_animations=False)[..., :3],
        lambda: tf.image.decode_image(file, channels=3, expand_animations=False),
    )
    image.set_shape([None, None, 3])
    return image


def _is_webp_with_alpha(file: tf.Tensor) -> tf.Tensor:
    """Of WebP, TensorFlow decodes all channels or none; of other formats it drops the alpha itself.

    Asked to find the number out (channels=0), it writes out of bounds at an animation without alpha. A file
    too short for this header raises, as one that is no image does.
    """
    kind = tf.strings.substr(file, 8, 8)
    # The bit 0x10 says it in both headers (RFC 9649); the third kind, plain lossy, has no alpha.
    flags = tf.strings.substr(file, tf.where(kind == 'WEBPVP8L', 24, 20), 1)
    has_bit = tf.bitwise.bitwise_and(tf.io.decode_raw(flags, tf.uint8)[0], 0x10) > 0
    return has_bit & ((kind == 'WEBPVP8L') | (kind == 'WEBPVP8X'))


def _decode_record(parse, epoch, index, record):
    file, label = parse(record)
    return {'epoch': epoch, 'wanted': index, 'index': index, 'image': decode(file), 'label': label}
