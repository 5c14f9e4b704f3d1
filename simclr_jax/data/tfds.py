"""Source: data sets prepared by TensorFlow Datasets. Behind the TensorFlow door: imported only when used."""

import dataclasses
import difflib
import os
import re
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from simclr_jax.config.paths import user_path
from simclr_jax.config.storage import check_reachable
from simclr_jax.data.spec import DataError, Encoded, Examples, Streamed
from simclr_jax.data.streams import stored_rows

# Environment variable. '1' allows data sets of communities, whose code comes from the network.
COMMUNITIES_ALLOWED = 'SIMCLR_TFDS_COMMUNITY'
# Field of the name in a pretraining.
_NAME = 'data.name'
# Examples that are parsed by one call.
_BLOCK = 1024


def load_tfds(name: str, split: str, data_dir: str, *, memory_limit: int, shuffle_buffer: int, lanes: int) -> Examples:
    """Opens a split of a data set with the features 'image' and, optionally, 'label' or 'labels'.

    'label' is one class, 'labels' a sequence of classes. VOC has both 'labels' and 'labels_no_difficult'. Classes that
    are only in the former are ignored.

    Args:
        name: Name in TFDS, for example 'cifar10' or 'imagenet2012_subset/10pct:5.*.*'.
        split: Split in TFDS' notation, for example 'train' or 'train[:80%]'.
        data_dir: Directory of prepared data sets. '' means TFDS_DATA_DIR, or ~/tensorflow_datasets.
        memory_limit: Largest stored size, in bytes, of a split that is kept in memory. Larger splits are streamed.
        shuffle_buffer, lanes: Reading of a streamed split, see `spec.Streamed`.

    Raises:
        DataError: The name or split is unknown, or the data set is not prepared, has no images or has a format that
            cannot be read. Also for a multi-label split larger than memory_limit.
    """
    builder = open_builder(name, data_dir)
    info = _split_of(builder, name, split, 'data.split or data.eval_split')
    size, features = info.num_examples, _features_of(builder, _NAME, name, ('image',))
    labels_of = _find_labels(features)
    full_name = f'{name}/{split}'
    is_records = all('.tfrecord' in str(instruction.filename) for instruction in info.file_instructions)
    if _stored_bytes(builder, size) > memory_limit:
        if labels_of.is_multi_label:
            raise DataError(
                f'{full_name} has several labels per image, and such a split is not streamed; its '
                f'{_stored_bytes(builder, size) / 2**30:.2g} GiB must stay in memory: raise data.memory_limit_gb'
            )
        if not is_records:
            file_format = builder.info.file_format
            raise DataError(
                f'{builder.info.full_name} is stored as {file_format and file_format.value}, and larger than '
                'data.memory_limit_gb; prepare it with --file_format=tfrecord, or raise the limit'
            )
        content = _streamed(builder, info, labels_of, shuffle_buffer, lanes)
        return Examples(full_name, size, content, None, labels_of.class_names)
    if is_records and not labels_of.is_multi_label:
        batches = _blocks_of_records(_streamed(builder, info, labels_of, shuffle_buffer, lanes))
    else:
        batches = _blocks(builder, split, labels_of)
    files, labels = _read_all(batches)
    return Examples(full_name, size, Encoded(files), labels, labels_of.class_names)


def load_masks(name: str, split: str, data_dir: str, *, memory_limit: int) -> tuple[str, Encoded, Encoded]:
    """Reads the encoded images and masks of a split into memory, from the features 'image' and 'segmentation_mask'.

    Args:
        name: Name in TFDS, for example 'oxford_iiit_pet'.
        split: Split in TFDS' notation.
        data_dir: Directory of prepared data sets, see `load_tfds`.
        memory_limit: Largest stored size of the split, in bytes.

    Returns:
        Name of the split, images and masks, in the same order.

    Raises:
        DataError: The name or split is unknown, or the data set is not prepared, has no masks or is larger.
    """
    field = 'segmentation.tfds'
    builder = open_builder(name, data_dir, field)
    info = _split_of(builder, name, split, 'segmentation.train_split or segmentation.test_split')
    needed = ('image', 'segmentation_mask')
    _features_of(builder, field, name, needed)
    stored = _stored_bytes(builder, info.num_examples)
    if stored > memory_limit:
        raise DataError(
            f'{name}/{split} takes {stored / 2**30:.2g} GiB in memory; raise data.memory_limit_gb of the pretraining, '
            'or give folders: segmentation.images and segmentation.masks'
        )
    decoders: Any = dict.fromkeys(needed, tfds.decode.SkipDecoding())
    dataset = _examples(builder, split, tfds.decode.PartialDecoding(dict.fromkeys(needed, True), decoders=decoders))
    examples: Any = list(dataset.as_numpy_iterator())
    images, masks = (Encoded([example[feature] for example in examples]) for feature in needed)
    return f'{name}/{split}', images, masks


def _split_of(builder, name: str, split: str, field: str):
    """What TFDS knows about a split that has examples. `field` names its field in messages."""
    try:
        info = builder.info.splits[split]
        size = info.num_examples
    except (KeyError, ValueError) as error:
        raise DataError(
            f"{field}='{split}': {name} has {', '.join(builder.info.splits)} "
            f'(and parts of them, like {next(iter(builder.info.splits))}[:80%])'
        ) from error
    if size == 0:
        raise DataError(f"{name}, split '{split}' is empty")
    return info


def _features_of(builder, field: str, name: str, needed: tuple[str, ...]) -> tfds.features.FeaturesDict:
    """The features of a data set, which has those that are needed."""
    features = builder.info.features
    assert isinstance(features, tfds.features.FeaturesDict), 'an example is a dictionary'
    missing = [feature for feature in needed if feature not in features]
    if missing:
        raise DataError(f"{field}={name} has the features {list(features)}, but no '{missing[0]}'")
    return features


@dataclasses.dataclass(frozen=True)
class _Labels:
    """The place of a data set's labels among its features.

    Attributes:
        features: Names of the features that hold the labels. Empty if there are no labels.
        class_names: Names of the labels 0..K-1.
    """

    features: tuple[str, ...]
    class_names: tuple[str, ...]

    @property
    def is_multi_label(self) -> bool:
        return 'labels' in self.features

    def __call__(self, examples) -> tf.Tensor:
        """Labels, int32: [] of one example, [B] of a batch, multi-label [B, K] of a batch. See `spec.Examples`."""
        if not self.features:
            return tf.fill(tf.shape(examples['image']), -1)
        if not self.is_multi_label:
            return tf.cast(examples['label'], tf.int32)
        # Where there are two features, the last one omits the difficult objects.
        named, present = (self._is_among(examples[self.features[place]]) for place in (0, -1))
        return tf.where(present, 1, tf.where(named, -1, 0))

    def _is_among(self, labels: tf.RaggedTensor) -> tf.Tensor:
        classes = tf.range(len(self.class_names), dtype=labels.dtype)
        return tf.reduce_any(tf.expand_dims(labels.to_tensor(-1), -1) == classes, axis=1)


def _find_labels(features) -> _Labels:
    if 'label' in features and isinstance(features['label'], tfds.features.ClassLabel):
        return _Labels(('label',), tuple(features['label'].names))
    several = tuple(name for name in ('labels', 'labels_no_difficult') if name in features)
    # The attribute `feature` of a sequence describes its elements.
    element = getattr(features['labels'], 'feature', None) if 'labels' in several else None
    return _Labels(several, tuple(element.names)) if isinstance(element, tfds.features.ClassLabel) else _Labels((), ())


def open_builder(name: str, data_dir: str, field: str = _NAME) -> tfds.core.DatasetBuilder:
    """Opens a prepared data set.

    Args:
        name: Name in TFDS.
        data_dir: Directory of prepared data sets, see `load_tfds`.
        field: Field of the name, for messages.

    Raises:
        DataError: The data set is unknown, not prepared, or of a community whose code TFDS would fetch.
    """
    _refuse_communities(name, field)
    check_reachable(data_dir)
    try:
        builder = tfds.builder(name, data_dir=user_path(data_dir) or None)
    except (tfds.core.DatasetNotFoundError, ValueError, TypeError, AssertionError, ImportError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise DataError(f'{field}={name}: TensorFlow Datasets cannot load it: {first_line}{_nearest(name)}') from error
    if not builder.info.splits:
        raise DataError(
            f'{field}={name} is not prepared in {builder.data_path.parent}; {_place(data_dir, field)}, or prepare it: '
            f'python -m tensorflow_datasets.scripts.cli.main build {name}'
            + (f' --data_dir={user_path(data_dir)}' if data_dir else '')
        )
    return builder


def _place(data_dir: str, field: str) -> str:
    """What the user can do about the place of a data set. An evaluation takes the directory of its pretraining."""
    if field == _NAME:
        return 'set TFDS_DATA_DIR (or data.path) to the directory where it is'
    if data_dir:
        return 'put it there, into data.path of the pretraining'
    return 'set TFDS_DATA_DIR to the directory where it is'


def _refuse_communities(name: str, field: str) -> None:
    """Raises DataError for a name like 'kubric:movi_a', unless the environment allows it.

    TFDS looks such names up in the network and runs what it finds there. A config.json from elsewhere must not decide
    about that, so no field allows it.
    """
    namespace, colon, rest = name.partition(':')
    is_version = re.fullmatch(r'[\d*]+([.][\d*]+)*', rest.partition('/')[0])
    if colon and not is_version and os.environ.get(COMMUNITIES_ALLOWED) != '1':
        raise DataError(
            f'{field}={name}: TensorFlow Datasets would fetch data sets of {namespace} from the network; prepare a '
            f'data set of its own, or allow it with the environment variable {COMMUNITIES_ALLOWED}=1'
        )


def _nearest(name: str) -> str:
    """Names of TFDS that are similar to an unknown one, as a question."""
    known = tfds.list_builders(with_community_datasets=False)
    plain = re.split('[:/]', name)[0]
    nearest = [] if plain in known else difflib.get_close_matches(plain, known, n=3)
    return f'; did you mean {" or ".join(nearest)}?' if nearest else ''


def _stored_bytes(builder, size: int) -> float:
    """Stored bytes of `size` examples of mean length. TFDS itself reports 0 bytes for a part of a split."""
    splits = builder.info.splits.values()
    return size * sum(split.num_bytes for split in splits) / sum(split.num_examples for split in splits)


def _blocks_of_records(content: Streamed) -> tf.data.Dataset:
    """Batches (encoded images [B], labels [B]) in stored order. Many examples are parsed at once."""

    def parse(_, records):
        return tf.vectorized_map(content.parse, records, warn=False)

    return stored_rows(content).batch(_BLOCK).map(parse)


def _blocks(builder, split: str, labels_of: _Labels) -> tf.data.Dataset:
    """Batches (encoded images [B], labels [B], or multi-label [B, K]) of any format, parsed one by one."""
    dataset = _examples(builder, split, _needed(labels_of))
    return dataset.ragged_batch(_BLOCK).map(lambda examples: (examples['image'], labels_of(examples)))


def _examples(builder, split: str, decoders: tfds.decode.PartialDecoding) -> tf.data.Dataset:
    """The examples of a split of any format in stored order, with the features that `decoders` names."""
    try:
        return builder.as_dataset(
            split=split,
            decoders=decoders,
            read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False, skip_prefetch=True),
            shuffle_files=False,
        )
    except NotImplementedError as error:
        raise DataError(
            f'{builder.info.full_name} is stored as {builder.info.file_format.value}, which TensorFlow Datasets does '
            'not read into tf.data; prepare it with --file_format=tfrecord'
        ) from error


def _needed(labels_of: _Labels) -> tfds.decode.PartialDecoding:
    """Decoders that read the labels, and the images in their encoded form."""
    return tfds.decode.PartialDecoding(
        {'image': True} | dict.fromkeys(labels_of.features, True), decoders={'image': tfds.decode.SkipDecoding()}
    )


def _read_all(batches: tf.data.Dataset) -> tuple[list[bytes], np.ndarray]:
    files, labels = [], []
    for images, rows in batches.as_numpy_iterator():
        files.extend(images)
        labels.append(rows)
    return files, np.concatenate(labels)


def _streamed(builder, info, labels_of: _Labels, shuffle_buffer: int, lanes: int) -> Streamed:
    instructions = info.file_instructions
    needed = _needed(labels_of)
    features: Any = needed.extract_features(builder.info.features)
    paths = np.array([str(instruction.filename) for instruction in instructions])
    skips = np.array([instruction.skip for instruction in instructions], np.int64)
    takes = np.array([instruction.take for instruction in instructions], np.int64)
    firsts = np.concatenate([[0], np.cumsum(takes)[:-1]]).astype(np.int64)

    def read(shard):
        records = tf.data.TFRecordDataset(tf.gather(paths, shard)).skip(tf.gather(skips, shard))
        records = records.take(tf.gather(takes, shard))
        return records.enumerate(tf.gather(firsts, shard))

    def parse(record):
        example = features.deserialize_example(record, decoders=needed.decoders)
        return example['image'], labels_of(example)

    return Streamed(takes.tolist(), read, parse, lanes, shuffle_buffer)
