"""Images with masks that name the class of each pixel: two folders, or a data set of TFDS. No TensorFlow at import.

An image and its mask have the same path below their folders, up to the extension. Masks are PNGs of 8 bits, grey or
with a palette, whose pixels are numbers of classes. Every image and mask must be readable. `data.max_unreadable`, which
allows a share of unreadable images elsewhere, does not apply here.
"""

import dataclasses
import hashlib
import os
from collections.abc import Mapping

import numpy as np
from etils import epath

from simclr_jax.config.paths import printable, user_path
from simclr_jax.config.storage import check_reachable, first_line, storage_errors
from simclr_jax.data.images import ImageError, decode, decode_mask, size_of
from simclr_jax.data.listing import list_images
from simclr_jax.data.reader import in_order, read_file
from simclr_jax.data.select import select
from simclr_jax.data.spec import DataError, Encoded, Examples, Files, needs_tensorflow
from simclr_jax.metrics.segmentation import IGNORED

# Stands for the name of the split in paths.
SPLIT = '{split}'
# Names in a message.
_NAMED = 10


@dataclasses.dataclass(frozen=True)
class Coding:
    """What the numbers in the files of masks mean.

    Attributes:
        first: Number of the first class. Smaller numbers are ignored.
        ignored: Number of pixels without a class.
    """

    first: int = 0
    ignored: int = IGNORED

    def classes(self, mask: np.ndarray) -> np.ndarray:
        """Classes from 0 up, or IGNORED, of the numbers of a mask, uint8 [...] both.

        Raises:
            ImageError: A number would be class 255, which is IGNORED.
        """
        if self.first == 0 and self.ignored != IGNORED and (mask == IGNORED).any():
            raise ImageError(
                f'the number {IGNORED} would be class {IGNORED}, and there are at most {IGNORED} classes, 0 to '
                f'{IGNORED - 1}; set segmentation.ignore={IGNORED}, or give these pixels another number'
            )
        numbers = np.arange(256)
        known = (numbers >= self.first) & (numbers != self.ignored)
        return np.where(known, numbers - self.first, IGNORED).astype(np.uint8)[mask]


@dataclasses.dataclass(frozen=True)
class Masked:
    """One split of images with masks.

    Attributes:
        images: The images. Its `class_names` are the classes of the masks.
        masks: Their masks, in the same order.
        coding: What the numbers in the masks mean.
        digest: Text that changes with the files of the images, the classes of their pixels and the class names. ''
            before `with_classes` has read them.
    """

    images: Examples
    masks: Files | Encoded
    coding: Coding
    digest: str = ''

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.images.num_classes

    def pair(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Reads an image, uint8 [H, W, 3], and the classes of its pixels, uint8 [H, W], IGNORED where there is none.

        Args:
            index: Index of the image, in 0..N - 1.

        Raises:
            DataError: One of them is not readable.
        """
        content, most = self.images.content, self.images.max_pixels
        assert isinstance(content, Files | Encoded)
        try:
            return decode(read_file(content, index, most), most), self.classes(index)
        except ImageError as error:
            raise DataError(f'{self.images.id_of(index)}: {error}; repair or remove it and its mask') from error

    def classes(self, index: int) -> np.ndarray:
        """Reads the classes of an image's pixels, see `pair`.

        Raises:
            ImageError: The mask is not readable.
        """
        return self.coding.classes(self.numbers(index))

    def numbers(self, index: int) -> np.ndarray:
        """Reads the mask of an image as it is in its file, uint8 [H, W]. Raises ImageError, see `classes`."""
        most = self.images.max_pixels
        return decode_mask(read_file(self.masks, index, most), most)

    def part(self, share: float, seed: int) -> 'Masked':
        """A random share of the images, at least one. Parts of one seed are nested. They keep the digest of the whole.

        Args:
            share: Share of the images, in (0, 1).
            seed: Seed of the draw, non-negative.
        """
        size = self.images.size
        chosen = np.sort(np.random.default_rng(seed).permutation(size)[: max(1, round(share * size))])
        if isinstance(self.masks, Files):
            masks = Files([self.masks.paths[int(index)] for index in chosen])
        else:
            masks = Encoded([self.masks.files[int(index)] for index in chosen])
        return dataclasses.replace(self, images=select(self.images, chosen), masks=masks)


def open_folders(images: str, masks: str, lists: str, split: str, coding: Coding) -> Masked:
    """Opens a split of image files with masks. The number of classes is not known yet, see `with_classes`.

    Args:
        images: Folder of the images, local or gs://. In this and the other paths, '{split}' stands for `split`.
        masks: Folder of the masks. Masks of other images are left out.
        lists: Text file with the images of the split, one on each line, by their paths below `images` without the
            extension. '' means all images of the folder.
        split: Name of the split.
        coding: What the numbers in the masks mean.

    Raises:
        DataError: A folder or file is missing, an image has no mask, or there is no image at all.
    """
    places = {'images': images, 'masks': masks}
    folders = {field: user_path(path.replace(SPLIT, split)) for field, path in places.items()}
    listed = {field: _by_stem(f'segmentation.{field}', folder) for field, folder in folders.items()}
    found = {field: files for field, (files, _) in listed.items()}
    stems = _listed(user_path(lists.replace(SPLIT, split)), found['images']) if lists else sorted(found['images'])
    _check_pairs(stems, found['masks'], folders)
    name = printable(folders['images']) + (f' ({split})' if SPLIT not in images else '')
    examples = _unlabelled(name, Files([found['images'][stem] for stem in stems]), len(stems))
    examples = dataclasses.replace(examples, notes=tuple(note for _, notes in listed.values() for note in notes))
    return Masked(examples, Files([found['masks'][stem] for stem in stems]), coding)


def open_tfds(name: str, split: str, data_dir: str, memory_limit: int, coding: Coding) -> Masked:
    """Opens a split of a data set of TFDS with the features 'image' and 'segmentation_mask', see `tfds.load_masks`.

    The number of classes is not known yet, see `with_classes`.

    Raises:
        DataError: See `tfds.load_masks`. Or TensorFlow is not installed.
    """
    with needs_tensorflow(f'segmentation.tfds={name}', 'give folders: segmentation.images and segmentation.masks'):
        from simclr_jax.data.tfds import load_masks

    full_name, images, masks = load_masks(name, split, data_dir, memory_limit=memory_limit)
    return Masked(_unlabelled(full_name, images, len(images.files)), masks, coding)


def _unlabelled(name: str, content: Files | Encoded, size: int) -> Examples:
    return Examples(name, size, content, np.full(size, -1, np.int32), ())


def _by_stem(field: str, folder: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """Paths of the images in a folder by their paths below it without the extension, and notes on what is left out."""
    path = epath.Path(folder)
    check_reachable(path)
    if not path.is_dir():
        raise DataError(f'{field}={printable(folder)}: there is no such directory; give the one with the files')
    try:
        listing = list_images(folder)
    except (OSError, *storage_errors()) as error:
        why = getattr(error, 'strerror', None) or first_line(error)
        raise DataError(f'{field}={printable(folder)} cannot be listed: {why}; choose another') from error
    notes = (f'{printable(folder)}: left out {listing.left_out}.',) if listing.left_out else ()
    if not listing.paths:
        message = f'{field}={printable(folder)} holds no image files; give the directory with the files'
        raise DataError('\n'.join([message, *notes]))
    found: dict[str, str] = {}
    for file in listing.paths:
        stem = os.path.splitext(file[len(folder) :].lstrip(os.sep))[0]
        if stem in found:
            raise DataError(f'{printable(found[stem])} and {printable(file)} differ in the extension alone; remove one')
        found[stem] = file
    return found, notes


def _listed(path: str, images: Mapping[str, str]) -> list[str]:
    """The stems in a list of images."""
    try:
        stems = [line.strip() for line in epath.Path(path).read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError, *storage_errors()) as error:
        why = getattr(error, 'strerror', None) or first_line(error)
        raise DataError(f'segmentation.lists={printable(path)} cannot be read: {why}; give a text file') from error
    missing = [stem for stem in stems if stem not in images]
    if missing or not stems:
        what = f'names {_named(missing)}, which segmentation.images does not hold' if missing else 'is empty'
        raise DataError(
            f'segmentation.lists={printable(path)} {what}; each line is the path of an image below that folder, '
            f'without the extension, such as {printable(next(iter(images)))}'
        )
    return stems


def _check_pairs(stems: list[str], masks: Mapping[str, str], folders: Mapping[str, str]) -> None:
    missing = [stem for stem in stems if stem not in masks]
    if len(missing) == len(stems):
        raise DataError(
            f'segmentation.images={printable(folders["images"])} and segmentation.masks={printable(folders["masks"])} '
            f'have no name in common, for example {printable(stems[0])} and {printable(next(iter(masks)))}; give an '
            'image and its mask the same path up to the extension'
        )
    if missing:
        raise DataError(
            f'{len(missing)} of {len(stems)} images have no mask in segmentation.masks={printable(folders["masks"])}: '
            f'{_named(missing)}; remove these images, or name the others in segmentation.lists'
        )


def _named(names: list[str]) -> str:
    shown = ', '.join(map(printable, names[:_NAMED]))
    return f'{shown} and {len(names) - _NAMED} more' if len(names) > _NAMED else shown


def with_classes(masked: Masked, class_names: tuple[str, ...] = ()) -> Masked:
    """Reads all masks of a split once, checks them and names the classes.

    Args:
        masked: Split to check.
        class_names: Names of all classes. Empty means that the masks say how many there are, and their numbers in the
            files are the names.

    Raises:
        DataError: A mask or the header of an image is not readable, or their sizes differ. Or a mask holds a class
            without a name, or one beyond the 255th. Or the masks hold no class at all, or only one where none are
            named.
    """
    present, problems, digest = np.zeros(256, bool), [], hashlib.blake2b(digest_size=16)
    for found, content, problem in in_order(lambda index: _examined(masked, index), range(masked.images.size)):
        present |= found
        problems += problem
        digest.update(content)
    if problems:
        raise DataError(
            '\n'.join([*problems[:_NAMED], f'{len(problems)} of {masked.images.size} pairs cannot be used'])
        )
    classes = np.flatnonzero(present[:IGNORED])
    name = masked.images.name
    least = 1 if class_names else 2
    if len(classes) < least:
        raise DataError(
            f'the masks of {name} hold {len(classes)} classes besides the ignored pixels, at least {least} are needed; '
            'see segmentation.ignore and segmentation.first_class'
        )
    if not class_names:
        first = masked.coding.first
        class_names = tuple(str(number) for number in range(first, first + int(classes[-1]) + 1))
    beyond = classes[classes >= len(class_names)]
    if len(beyond):
        raise DataError(
            f'the masks of {name} hold the number {beyond[-1] + masked.coding.first}, but there are only '
            f'{len(class_names)} classes from {masked.coding.first} up; set segmentation.classes, or '
            'segmentation.ignore if these pixels have no class'
        )
    digest.update(repr(class_names).encode(errors='surrogateescape'))
    images = dataclasses.replace(masked.images, class_names=class_names)
    return dataclasses.replace(masked, images=images, digest=digest.hexdigest())


def _examined(masked: Masked, index: int) -> tuple[np.ndarray, bytes, list[str]]:
    """The classes in a mask, bool [256], a digest of it and its image, and what is wrong with them."""
    content, most = masked.images.content, masked.images.max_pixels
    assert isinstance(content, Files | Encoded)
    nothing = np.zeros(256, bool), b''
    file, image_id = _mask_id(masked, index), printable(masked.images.id_of(index))
    try:
        numbers = masked.numbers(index)
    except ImageError as error:
        return *nothing, [f'{file}: {error}; a mask is a PNG of 8 bits with the number of a class in each pixel']
    try:
        classes = masked.coding.classes(numbers)
    except ImageError as error:
        return *nothing, [f'{file}: {error}']
    try:
        image = read_file(content, index, most)
        size = size_of(image, most)
    except ImageError as error:
        return *nothing, [f'{image_id}: {error}; repair or remove it and its mask']
    if size != classes.shape:
        shapes = f'{file} has {classes.shape[0]} x {classes.shape[1]} pixels, {image_id} has {size[0]} x {size[1]}'
        return *nothing, [f'{shapes}; make the mask as large as its image']
    digest = hashlib.blake2b(image, digest_size=16)
    digest.update(classes.tobytes())
    return np.bincount(classes.ravel(), minlength=256) > 0, digest.digest(), []


def _mask_id(masked: Masked, index: int) -> str:
    if isinstance(masked.masks, Files):
        return printable(masked.masks.paths[index])
    return f'the mask of {masked.images.id_of(index)}'
