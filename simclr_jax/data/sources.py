"""From the configuration's `data` to the examples of a split."""

from ml_collections import ConfigDict

from simclr_jax.data import arrays, folder
from simclr_jax.data.spec import Examples


def load_examples(data: ConfigDict, split: str) -> Examples:
    """Opens a split of the configured source.

    Args:
        data: the configuration's group `data`.
        split: `data.split`, `data.eval_split` or another name that the source knows.

    Raises:
        DataError: it cannot be opened; the message names the field and the cure.
    """
    if data.source == 'tfds':
        from simclr_jax.data.tfds import load_tfds

        return load_tfds(
            data.name,
            split,
            data.path,
            memory_limit=int(data.memory_limit_gb * 2**30),
            shuffle_buffer=data.shuffle_buffer,
        )
    if data.source == 'folder':
        return folder.load_folder(data.path, split)
    if data.source == 'arrays':
        return arrays.load_npz(data.path, split)
    if data.source == 'digits':
        return arrays.load_digits(split)
    return arrays.make_fake(split, data.fake_images, data.image_size)
