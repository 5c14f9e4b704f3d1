"""From the configuration's `data` to the examples of a split."""

import dataclasses
from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from simclr_jax.data import arrays, folder
from simclr_jax.data.packed import load_packed
from simclr_jax.data.spec import DataError, Examples, needs_tensorflow


def load_examples(data: ConfigDict, split: str) -> Examples:
    """Opens a split of the configured source.

    Args:
        data: Group `data` of a checked configuration.
        split: `data.split`, `data.eval_split` or another name that the source knows.

    Raises:
        DataError: The split cannot be opened. The message names the field and the cure.
    """
    return dataclasses.replace(SOURCES[data.source](data, split), max_pixels=data.max_image_pixels)


def _tfds(data: ConfigDict, split: str) -> Examples:
    # Imported here: it needs TensorFlow.
    with needs_tensorflow(f'data.source=tfds (data.name={data.name})', 'choose data.source=folder or arrays'):
        from simclr_jax.data.tfds import load_tfds

    return load_tfds(
        data.name,
        split,
        data.path,
        memory_limit=int(data.memory_limit_gb * 2**30),
        shuffle_buffer=data.shuffle_buffer,
        lanes=data.lanes,
    )


# config.data.source -> function of the group config.data and a split.
SOURCES: dict[str, Callable[[ConfigDict, str], Examples]] = {
    'tfds': _tfds,
    'packed': load_packed,
    'folder': lambda data, split: folder.load_folder(data.path, split),
    'arrays': lambda data, split: arrays.load_npz(data.path, split, int(data.memory_limit_gb * 2**30)),
    'digits': lambda data, split: arrays.load_digits(split),
    'fake': lambda data, split: arrays.make_fake(split, data.fake_images, data.image_size),
}


def without_multi_labels(examples: Examples) -> Examples:
    """The split without its labels if they are several an image: a softmax and a vote of neighbours want one."""
    if not examples.is_multi_label:
        return examples
    return dataclasses.replace(examples, labels=np.full(examples.size, -1, np.int32), class_names=())


def align_classes(examples: Examples, like: Examples) -> Examples:
    """Gives a split the label numbers of another one, by the classes' names: a test split may lack some.

    Raises:
        DataError: it has classes that the other one has not, or only one of the two is multi-label.
    """
    if examples.num_classes and like.num_classes and examples.is_multi_label != like.is_multi_label:
        raise DataError(
            f'{examples.name} and {like.name}: one has several labels an image, the other one label; take two '
            'splits of the same kind'
        )
    if examples.class_names == like.class_names or not examples.num_classes:
        return examples
    unknown = sorted(set(examples.class_names) - set(like.class_names))
    if unknown:
        raise DataError(
            f'{examples.name} has {examples.num_classes} classes, {like.name} has {like.num_classes}; '
            f'unknown there: {", ".join(unknown[:20])}. Take them out, or evaluate without it: '
            "data.eval_split=''"
        )
    if examples.labels is None:
        return dataclasses.replace(examples, class_names=like.class_names)
    number = {name: label for label, name in enumerate(like.class_names)}
    if examples.is_multi_label:
        # Of a class that it does not know, it does not say that the image shows none.
        labels = np.full((examples.size, like.num_classes), -1, np.int32)
        labels[:, [number[name] for name in examples.class_names]] = examples.labels
        return dataclasses.replace(examples, labels=labels, class_names=like.class_names)
    new_labels = np.array([number[name] for name in examples.class_names] + [-1], np.int32)
    return dataclasses.replace(examples, labels=new_labels[examples.labels], class_names=like.class_names)
