"""Data sets by name: the twelve of SimCLR's transfer experiments, any other of TFDS, and the user's own."""

import dataclasses
import difflib
import os
import pathlib
from collections.abc import Callable

from simclr_jax.data.spec import DataError, Examples

# Names that folders, files and TensorFlow Datasets give to the splits; the first that is there counts.
VALIDATION_NAMES = ('validation', 'val')
TEST_NAMES = ('test', *VALIDATION_NAMES)


@dataclasses.dataclass(frozen=True)
class TransferSet:
    """A data set of the transfer experiments of SimCLR, arXiv 2002.05709, appendix B.8.

    Attributes:
        name: as it is asked for.
        tfds_name: as TensorFlow Datasets writes it, with the configuration of the standard splits.
        validation_split: the one that its creators define, not in 'train'; the final classifier learns from
            both. '': none, cut it from 'train' by a stratified split.
        test_split: as TensorFlow Datasets writes it.
        metric: 'top1', 'mean_per_class' (mean of the classes' accuracies) or 'map_11_point' (mean over the
            classes of the average precision at 11 recalls).
        train_size: images of train and validation together in the paper.
        test_size: images of the test split in the paper.
        is_in_tfds: whether TensorFlow Datasets can prepare it; if not, the user brings it.
        train_split: as TensorFlow Datasets writes it.
    """

    name: str
    tfds_name: str
    validation_split: str
    test_split: str
    metric: str
    train_size: int
    test_size: int
    is_in_tfds: bool = True
    train_split: str = 'train'


TRANSFER_SUITE = (
    # TFDS calls Food-101's test images 'validation'.
    TransferSet('food101', 'food101', '', 'validation', 'top1', 75_750, 25_250),
    TransferSet('cifar10', 'cifar10', '', 'test', 'top1', 50_000, 10_000),
    TransferSet('cifar100', 'cifar100', '', 'test', 'top1', 50_000, 10_000),
    TransferSet('birdsnap', 'birdsnap', '', 'test', 'top1', 47_386, 2_443, is_in_tfds=False),
    # Without the configuration it would be TFDS' own, random division.
    TransferSet('sun397', 'sun397/standard-part1-120k', '', 'test', 'top1', 19_850, 19_850),
    TransferSet('cars', 'cars196', '', 'test', 'top1', 8_144, 8_041),
    TransferSet('aircraft', 'fgvc_aircraft', 'validation', 'test', 'mean_per_class', 6_667, 3_333, is_in_tfds=False),
    TransferSet('voc2007', 'voc/2007', 'validation', 'test', 'map_11_point', 5_011, 4_952),
    TransferSet('dtd', 'dtd', 'validation', 'test', 'top1', 3_760, 1_880),
    TransferSet('pets', 'oxford_iiit_pet', '', 'test', 'mean_per_class', 3_680, 3_669),
    TransferSet('caltech101', 'caltech101', '', 'test', 'mean_per_class', 3_060, 6_084),
    TransferSet('flowers', 'oxford_flowers102', 'validation', 'test', 'mean_per_class', 2_040, 6_149),
)


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """What to load, and how it is measured.

    Attributes:
        source, name, path, split, eval_split: as in the configuration's group `data`.
        validation_split: to choose hyper-parameters on; '': cut it from `split`.
        member: the data set of the transfer experiments that it is, if any.
    """

    source: str
    name: str
    path: str
    split: str
    eval_split: str
    validation_split: str
    member: TransferSet | None = None

    def data_fields(self) -> dict[str, str]:
        """The fields for the configuration's group `data`."""
        return {name: getattr(self, name) for name in ('source', 'name', 'path', 'split', 'eval_split')}

    def metric(self, examples: Examples) -> str:
        """The transfer experiments' metric, or the usual one for the examples' kind of labels; see TransferSet."""
        if self.member is not None:
            return self.member.metric
        return 'map_11_point' if examples.is_multi_label else 'top1'

    def size_difference(self, train_size: int, test_size: int) -> str:
        """Says how the data set differs in size from the paper's; '': it does not, or is not the paper's.

        Args:
            train_size: images of the splits to learn from, validation included.
            test_size: images of the split to report on.
        """
        member = self.member
        if member is None or (train_size, test_size) == (member.train_size, member.test_size):
            return ''
        return (
            f'{member.name} has {train_size:,} training and {test_size:,} test images, in the paper '
            f'{member.train_size:,} and {member.test_size:,}: do not compare with the published results'
        )


def resolve_dataset(text: str, data_dir: str = '') -> DatasetSpec:
    """What a data set's name means.

    * 'food101', ...: a name of TRANSFER_SUITE, or TFDS' name of the same;
    * 'fashion_mnist', 'imagenet2012_subset/10pct', 'beans:1.0.0': a data set prepared by TensorFlow Datasets;
    * 'folder:PATH', or a path to a directory: it has the sub-directories train and test (or val, validation),
      and these one for each class. If it is called birdsnap or aircraft, which TFDS has not, it is that one;
    * 'PATH.npz' with '{split}' in it, see `arrays.load_npz`.

    What tests is the split 'test', and where there is none 'validation' or 'val'; where there are both, the
    latter is the validation split.

    Args:
        text: the name.
        data_dir: where TensorFlow Datasets' data sets are; see `tfds.load_tfds`.

    Raises:
        DataError: no such data set, not prepared, or it has not the splits to train and to test.
    """
    if text.startswith('folder:'):
        return _resolve_folder(text.removeprefix('folder:'))
    if text.endswith('.npz'):
        return _resolve_npz(text)
    if os.sep in text and pathlib.Path(text).expanduser().is_dir():
        return _resolve_folder(text)
    name, _, version = text.partition(':')
    member = _find_member(name)
    if member is None:
        return _resolve_tfds(text, data_dir)
    tfds_name = f'{member.tfds_name}:{version}' if version else member.tfds_name
    if not member.is_in_tfds:
        _check_brought(member, tfds_name, data_dir)
    return DatasetSpec(
        'tfds', tfds_name, data_dir, member.train_split, member.test_split, member.validation_split, member
    )


def _find_member(name: str) -> TransferSet | None:
    return next((member for member in TRANSFER_SUITE if name in (member.name, member.tfds_name)), None)


def _check_brought(member: TransferSet, tfds_name: str, data_dir: str) -> None:
    from simclr_jax.data.tfds import open_builder

    try:
        open_builder(tfds_name, data_dir)
    except DataError as error:
        raise DataError(
            f'{member.name} cannot be prepared by TensorFlow Datasets: bring it as a folder of that name with '
            f'train/ and test/ (and val/), each with a sub-folder for every class, folder:PATH/{member.name}; '
            f"or prepare a builder of your own, called '{member.tfds_name}'"
        ) from error


def _resolve_tfds(text: str, data_dir: str) -> DatasetSpec:
    from simclr_jax.data.tfds import open_builder

    try:
        splits = open_builder(text, data_dir).info.splits
    except DataError as error:
        names = [member.name for member in TRANSFER_SUITE]
        nearest = difflib.get_close_matches(text, names, 1) or names
        raise DataError(
            f"data set '{text}': {error} (the transfer experiments have {', '.join(nearest)}; images of your own: "
            'folder:PATH or PATH_{split}.npz)'
        ) from error
    return DatasetSpec('tfds', text, data_dir, *_choose_splits(text, splits.__contains__, ', '.join(splits)))


def _resolve_folder(path: str) -> DatasetSpec:
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
        raise DataError(f"data set 'folder:{path}': there is no such directory")
    there = ', '.join(sorted(entry.name for entry in root.iterdir() if entry.is_dir())[:20])
    splits = _choose_splits(path, lambda split: (root / split).is_dir(), there)
    # The others come from TFDS: a folder called flowers is most likely other flowers.
    member = _find_member(root.resolve().name)
    return DatasetSpec('folder', '', str(root), *splits, None if member is None or member.is_in_tfds else member)


def _resolve_npz(path: str) -> DatasetSpec:
    if '{split}' not in path:
        raise DataError(f"data set '{path}': one file holds one split; write {{split}} where the files' names differ")

    def has(split: str) -> bool:
        return pathlib.Path(path.replace('{split}', split)).is_file()

    there = ', '.join(filter(has, ('train', *TEST_NAMES)))
    return DatasetSpec('arrays', '', path, *_choose_splits(path, has, there))


def _choose_splits(text: str, has: Callable[[str], bool], there: str) -> tuple[str, str, str]:
    """The splits to train on, to test on and to validate on, '' if there is none of its own."""
    test = next(filter(has, TEST_NAMES), None)
    if not has('train') or test is None:
        raise DataError(
            f"data set '{text}' must have the splits train and test (or validation, or val); "
            f'there are: {there or "none"}'
        )
    return 'train', test, next(filter(has, VALIDATION_NAMES), '') if test == 'test' else ''
