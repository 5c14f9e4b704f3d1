"""Sources that are arrays: .npz files, scikit-learn's digits, and noise for trials. No TensorFlow."""

import itertools
import math
import zipfile
import zlib
from typing import Any

import numpy as np
from etils import epath

from simclr_jax.config.paths import user_path
from simclr_jax.config.storage import check_reachable
from simclr_jax.data.spec import DataError, Decoded, Encoded, Examples, three_channels

# Digits come as one set. Every fifth image is for testing.
DIGITS_TEST_EVERY = 5


def load_npz(path: str, split: str, most_bytes: int = 2**31) -> Examples:
    """Opens a split in one .npz file, without pickle.

    The file holds the images in one of two forms:

    * 'image' (also 'images' or 'x'): uint8 [N, H, W] or [N, H, W, C];
    * 'jpeg': uint8, all files one after the other, with 'offset': int64 [N + 1].

    It may hold 'label' (also 'labels' or 'y'). Single label: int [N], -1: none. Multi-label, for K >= 2 classes:
    int [N, K], 1: present, 0: absent, -1: ignored.

    Args:
        path: Path of the file, local or gs://. '{split}' in it is replaced by the split's name.
        split: Name of the split.
        most_bytes: Largest size of the unpacked arrays, in bytes. A file that is larger itself is no surprise, and may
            unpack to its own size.

    Raises:
        DataError: There is no such file, it lacks the arrays, they are too large, or their lengths do not fit together.
    """
    if '{split}' not in path and split not in ('', 'train'):
        raise DataError(
            f"data.path={path} is one file and holds no split '{split}'; write {{split}} where the files' "
            "names differ, as in data_{split}.npz, or set data.eval_split=''"
        )
    path = user_path(path.replace('{split}', split))
    check_reachable(path)
    file = epath.Path(path)
    if not file.exists() or file.is_dir():
        raise DataError(f"data.path: there is no file {path}; give one ({{split}} in it becomes '{split}')")
    arrays = _read_arrays(file, most_bytes)

    labels = next((arrays[name] for name in ('label', 'labels', 'y') if name in arrays), None)
    images = next((arrays[name] for name in ('image', 'images', 'x') if name in arrays), None)
    if images is not None:
        content = Decoded(three_channels(images))
        size = len(images)
    elif 'jpeg' in arrays and 'offset' in arrays:
        content = Encoded(_cut(arrays['jpeg'], arrays['offset'], path))
        size = len(content.files)
    else:
        raise DataError(f"{path} holds {sorted(arrays)}; it must hold 'image', or 'jpeg' and 'offset'")
    return _examples(f'{path}', size, content, labels)


def _read_arrays(path: epath.Path, most_bytes: int) -> dict[str, np.ndarray]:
    try:
        with path.open('rb') as file, zipfile.ZipFile(file) as packed:
            sizes = [_unpacked_bytes(packed, member) for member in packed.infolist()]
            file.seek(0, 2)
            if sum(sizes) > max(most_bytes, file.tell()):
                raise DataError(
                    f'{path} unpacks to {sum(sizes):,} bytes, more than data.memory_limit_gb={most_bytes / 2**30:g} '
                    'allows; raise it, or give smaller arrays'
                )
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
    except DataError:
        raise
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise DataError(
            f'{path} is not an .npz file of plain arrays: {error}; write one with '
            'numpy.savez(path, image=..., label=...)'
        ) from error


def _unpacked_bytes(packed: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    """Size of an array by the two headers that say it: that of the archive and that of the array."""
    with packed.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    return max(member.file_size, math.prod(shape) * dtype.itemsize)


def _cut(jpeg: np.ndarray, offset: np.ndarray, path: str) -> list[bytes]:
    are_vectors = jpeg.ndim == offset.ndim == 1
    if not are_vectors or jpeg.dtype != np.uint8 or not np.issubdtype(offset.dtype, np.integer):
        raise DataError(
            f"{path}: 'jpeg' is {jpeg.dtype} {list(jpeg.shape)} and 'offset' is {offset.dtype} "
            f'{list(offset.shape)}; must be uint8 [bytes] and integers [N + 1]'
        )
    bounds_fit = len(offset) > 0 and offset[0] == 0 and offset[-1] == len(jpeg)
    if not bounds_fit or np.any(offset[1:] < offset[:-1]):
        raise DataError(f"{path}: 'offset' is {offset}; must not fall, from 0 to the length of 'jpeg', {len(jpeg)}")
    data = jpeg.tobytes()
    return [data[start:end] for start, end in itertools.pairwise(offset)]


def load_digits(split: str) -> Examples:
    """Opens scikit-learn's digits (UCI optical recognition of handwritten digits), 8 x 8 pixels, 10 classes.

    Args:
        split: 'train' (1,437 images) or 'test' (360 images, every fifth of the set).

    Raises:
        DataError: The split has another name.
    """
    from sklearn import datasets

    if split not in ('train', 'test'):
        raise DataError(f"data.split='{split}': the source digits has train and test")
    digits: Any = datasets.load_digits()
    is_test = np.arange(len(digits.target)) % DIGITS_TEST_EVERY == 0
    chosen = is_test if split == 'test' else ~is_test
    images = np.round(digits.images[chosen] * (255 / 16)).astype(np.uint8)
    content = Decoded(three_channels(images))
    return _examples(f'digits/{split}', len(images), content, digits.target[chosen])


def make_fake(split: str, size: int, image_size: int) -> Examples:
    """Makes noise with ten slightly different mean colours, one per class, in place of a data set.

    Args:
        split: Name of the split. Splits of different names have different images.
        size: Number of images.
        image_size: Height and width of the images, in pixels.
    """
    seed = sum(split.encode())
    random = np.random.default_rng(seed)
    labels = random.integers(10, size=size).astype(np.int32)
    noise = random.integers(0, 156, size=(size, image_size, image_size, 3))
    images = (noise + 10 * labels[:, None, None, None]).astype(np.uint8)
    return _examples(f'fake/{split}', size, Decoded(images), labels)


def _examples(name: str, size: int, content: Decoded | Encoded, labels: np.ndarray | None) -> Examples:
    if size == 0:
        raise DataError(f'{name} holds no images')
    if labels is None:
        return Examples(name, size, content, np.full(size, -1, np.int32), ())
    # A single column most likely holds class numbers that were not flattened.
    is_multi_label = labels.ndim == 2 and labels.shape[1] > 1
    has_rows = labels.shape[:1] == (size,) and (labels.ndim == 1 or is_multi_label)
    is_integer = np.issubdtype(labels.dtype, np.integer)
    if not has_rows or not is_integer or labels.min() < -1 or (is_multi_label and labels.max() > 1):
        raise DataError(
            f"{name}: 'label' is {labels.dtype} {list(labels.shape)}; must be integers >= -1, one for each "
            f'of {size} images, or [{size}, 2 or more classes] with 1 (present), 0 (absent) and -1 (ignored)'
        )
    num_classes = labels.shape[1] if is_multi_label else labels.max() + 1
    return Examples(name, size, content, labels.astype(np.int32), tuple(map(str, range(num_classes))))
