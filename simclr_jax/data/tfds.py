"""Source: data sets prepared by TensorFlow Datasets. Behind the TensorFlow door: imported only when used."""

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from simclr_jax.data.spec import DataError, Encoded, Examples, Streamed

# Shards of a streamed split that are read side by side, a record from each in turn.
INTERLEAVED_SHARDS = 16


def load_tfds(name: str, split: str, data_dir: str, *, memory_limit: int, shuffle_buffer: int) -> Examples:
    """A split of a data set with the features 'image' and, optionally, 'label'.

    Args:
        name: as TFDS writes it, 'cifar10' or 'imagenet2012_subset/10pct:5.*.*'.
        split: as TFDS writes it, 'train' or 'train[:80%]'.
        data_dir: where it is prepared; '': TFDS_DATA_DIR, or ~/tensorflow_datasets.
        memory_limit: bytes; a split whose stored size is above is streamed.
        shuffle_buffer: records among which a streamed split's next one is drawn.

    Raises:
        DataError: unknown name or split, not prepared, or without images.
    """
    builder = _builder(name, data_dir)
    try:
        info = builder.info.splits[split]
        size = info.num_examples
    except (KeyError, ValueError) as error:
        raise DataError(
            f"data.split or data.eval_split='{split}': {name} has {', '.join(builder.info.splits)} "
            f'(and parts of them, like {next(iter(builder.info.splits))}[:80%])'
        ) from error
    if size == 0:
        raise DataError(f"{name}, split '{split}' is empty")
    features = builder.info.features
    if 'image' not in features:
        raise DataError(f"data.name={name} has the features {list(features)}, but no 'image'")
    is_class = 'label' in features and isinstance(features['label'], tfds.features.ClassLabel)
    class_names = tuple(features['label'].names) if is_class else ()
    full_name = f'{name}/{split}'
    if _stored_bytes(builder, size) > memory_limit:
        content = Streamed(_streamed(builder, info, is_class, shuffle_buffer))
        return Examples(full_name, size, content, None, class_names)
    files, labels = _read_all(builder, split, is_class)
    return Examples(full_name, size, Encoded(files), labels, class_names)


def _builder(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    try:
        builder = tfds.builder(name, data_dir=data_dir or None)
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise DataError(f'data.name={name}: TensorFlow Datasets cannot load it: {first_line}') from error
    if not builder.info.splits:
        raise DataError(
            f'data.name={name} is not prepared in {builder.data_path.parent}; set TFDS_DATA_DIR '
            '(or data.path) to the directory where it is, or prepare it: '
            f'python -m tensorflow_datasets.scripts.cli.main build {name}'
        )
    return builder


def _stored_bytes(builder, size: int) -> float:
    """Of `size` examples of mean length; TFDS reports 0 bytes for a part of a split."""
    splits = builder.info.splits.values()
    return size * sum(split.num_bytes for split in splits) / sum(split.num_examples for split in splits)


def _read_all(builder, split: str, is_class: bool) -> tuple[list[bytes], np.ndarray]:
    """Every encoded image and label, in the order in which they are stored."""
    dataset = builder.as_dataset(
        split=split,
        decoders=tfds.decode.PartialDecoding(
            {'image': True, 'label': True} if is_class else {'image': True},
            decoders={'image': tfds.decode.SkipDecoding()},
        ),
        read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False, skip_prefetch=True),
        shuffle_files=False,
    )
    files, labels = [], []
    for rows in dataset.batch(1024).as_numpy_iterator():
        files.extend(rows['image'])
        labels.append(rows['label'] if is_class else np.full(len(rows['image']), -1))
    return files, np.concatenate(labels).astype(np.int32)


def _streamed(builder, info, is_class: bool, shuffle_buffer: int):
    """The function `records(epoch, seed)` of a streamed split; see spec.Streamed."""
    instructions = info.file_instructions
    if not all('.tfrecord' in str(instruction.filename) for instruction in instructions):
        raise DataError(
            f'{builder.info.full_name} is stored in another format than tfrecord, and larger than '
            'data.memory_limit_gb; prepare it with --file_format=tfrecord, or raise the limit'
        )
    paths = np.array([str(instruction.filename) for instruction in instructions])
    skips = np.array([instruction.skip for instruction in instructions], np.int64)
    takes = np.array([instruction.take for instruction in instructions], np.int64)
    firsts = np.concatenate([[0], np.cumsum(takes)[:-1]]).astype(np.int64)

    def read_shard(shard):
        records = tf.data.TFRecordDataset(tf.gather(paths, shard)).skip(tf.gather(skips, shard))
        records = records.take(tf.gather(takes, shard))
        return records.enumerate(tf.gather(firsts, shard))

    def parse(index, record):
        example = builder.info.features.deserialize_example(record, decoders={'image': tfds.decode.SkipDecoding()})
        label = tf.cast(example['label'], tf.int32) if is_class else tf.constant(-1, tf.int32)
        return index, example['image'], label

    def records(epoch, seed):
        shards = tf.data.Dataset.range(len(paths))
        if epoch is None:
            return shards.flat_map(read_shard).map(parse)
        key = tf.stack([tf.constant(seed, tf.int64), epoch])
        shards = shards.map(lambda shard: tf.random.experimental.index_shuffle(shard, key, len(paths) - 1))
        rows = shards.interleave(read_shard, cycle_length=min(INTERLEAVED_SHARDS, len(paths)))
        rows = rows.shuffle(shuffle_buffer, seed=key[0] * 1_000_003 + key[1], reshuffle_each_iteration=False)
        return rows.map(parse)

    return records
