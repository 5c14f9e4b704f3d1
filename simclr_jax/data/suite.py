"""Data sets by name: the twelve of SimCLR's transfer experiments, all others in TFDS, and the user's own."""

import dataclasses
import difflib
import os
from collections.abc import Callable

from etils import epath

from simclr_jax.config.paths import FOLDER, is_file, is_remote, user_path
from simclr_jax.config.storage import check_reachable
from simclr_jax.data.packed import INDEX
from simclr_jax.data.spec import DataError, Examples, needs_tensorflow

# Names of the splits in folders, files and TensorFlow Datasets. The first that exists is taken.
VALIDATION_NAMES = ('validation', 'val', 'valid')
TEST_NAMES = ('test', *VALIDATION_NAMES)


@dataclasses.dataclass(frozen=True)
class TransferSet:
    """A data set of the transfer experiments of SimCLR, arXiv 2002.05709, appendix B.8.

    Attributes:
        name: Name on the command line.
        tfds_name: Name in TensorFlow Datasets, with the builder configuration of the standard splits.
        validation_split: Validation split of the data set's creators, not contained in 'train'. The final classifier
            learns from both. '' means that there is none, and a stratified part of 'train' serves instead.
        test_split: Name of the test split in TensorFlow Datasets.
        metric: 'top1', 'mean_per_class' (mean of the classes' accuracies) or 'map_11_point' (mean over the classes of
            the average precision at 11 recalls).
        train_size: Images of train and validation together in the paper.
        test_size: Images of the test split in the paper.
        is_in_tfds: Whether TensorFlow Datasets can prepare it. If not, the user provides it.
        train_split: Name of the training split in TensorFlow Datasets.
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
    # Without this builder configuration it would be TFDS' own random division.
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
    """A data set to load, with its splits and its metric.

    Attributes:
        source, name, path, split, eval_split: Fields of the configuration's group `data`.
        validation_split: Split for the choice of hyper-parameters. '' means a part of `split`.
        member: Data set of the transfer experiments, None for any other.
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
        """Metric of the transfer experiments, or the usual one for the examples' kind of labels. See TransferSet."""
        if self.member is not None:
            return self.member.metric
        return 'map_11_point' if examples.is_multi_label else 'top1'

    def size_difference(self, train_size: int, test_size: int) -> str:
        """Describes how the data set differs in size from the paper's.

        Args:
            train_size: Images of the splits to learn from, validation included.
            test_size: Images of the split to report on.

        Returns:
            A message, or '' if the sizes agree or the paper has no such data set.
        """
        member = self.member
        if member is None or (train_size, test_size) == (member.train_size, member.test_size):
            return ''
        return (
            f'{member.name} has {train_size:,} training and {test_size:,} test images, in the paper '
            f'{member.train_size:,} and {member.test_size:,}: do not compare with the published results'
        )


def resolve_dataset(text: str, data_dir: str = '') -> DatasetSpec:
    """Resolves the name of a data set.

    * 'food101', ...: a name of TRANSFER_SUITE, or the name of such a data set in TFDS.
    * 'fashion_mnist', 'imagenet2012_subset/10pct', 'beans:1.0.0': a data set prepared by TensorFlow Datasets.
    * 'folder:PATH', or a path to a directory, local or gs://. It has the sub-directories train and test (or val,
      validation). Each of these has one sub-directory per class. A directory called birdsnap or aircraft, which TFDS
      lacks, is that member of the suite.
    * A path to a directory that `simclr pack` wrote.
    * 'PATH.npz' with '{split}' in it, see `arrays.load_npz`.

    The test split is 'test'. Where it is missing, one of VALIDATION_NAMES takes its place. Where both exist, the latter
    is the validation split.

    Args:
        text: Name of the data set.
        data_dir: Directory of TensorFlow Datasets' data sets, see `tfds.load_tfds`.

    Raises:
        DataError: There is no such data set, it is not prepared, or it lacks a split for training or testing.
    """
    if text.startswith(FOLDER):
        return _resolve_folder(text.removeprefix(FOLDER))
    if text.endswith('.npz'):
        return _resolve_npz(text)
    packed = _packed_splits(text)
    if packed:
        path = user_path(text)
        return DatasetSpec('packed', '', path, *_choose_splits(text, packed.__contains__, ', '.join(packed)))
    if is_remote(text) or (os.sep in text and epath.Path(user_path(text)).is_dir()):
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
    with needs_tensorflow(f'the data set {tfds_name}', 'give folder:PATH or PATH.npz'):
        from simclr_jax.data.tfds import open_builder

    try:
        open_builder(tfds_name, data_dir, 'datasets')
    except DataError as error:
        raise DataError(
            f'{member.name} cannot be prepared by TensorFlow Datasets: provide a folder of that name with '
            f'train/ and test/ (and val/), each with one sub-folder per class, as folder:PATH/{member.name}; '
            f"or prepare your own builder with the name '{member.tfds_name}'"
        ) from error


def _resolve_tfds(text: str, data_dir: str) -> DatasetSpec:
    with needs_tensorflow(f'the data set {text}', 'give folder:PATH or PATH.npz'):
        from simclr_jax.data.tfds import open_builder

    try:
        splits = open_builder(text, data_dir, 'datasets').info.splits
    except DataError as error:
        names = [member.name for member in TRANSFER_SUITE]
        nearest = difflib.get_close_matches(text, names, 1) or names
        raise DataError(
            f"data set '{text}': {error} (the transfer experiments have {', '.join(nearest)}; your own images: "
            'folder:PATH or PATH_{split}.npz)'
        ) from error
    return DatasetSpec('tfds', text, data_dir, *_choose_splits(text, splits.__contains__, ', '.join(splits)))


def _resolve_folder(path: str) -> DatasetSpec:
    check_reachable(path)
    root = epath.Path(user_path(path))
    if not root.is_dir():
        raise DataError(f"data set 'folder:{path}': there is no such directory")
    there = ', '.join(sorted(entry.name for entry in root.iterdir() if entry.is_dir())[:20])
    splits = _choose_splits(path, lambda split: (root / split).is_dir(), there)
    # The other members come from TFDS. A folder called flowers most likely holds other flowers.
    member = _find_member(root.resolve().name)
    return DatasetSpec('folder', '', os.fspath(root), *splits, None if member is None or member.is_in_tfds else member)


def _packed_splits(path: str) -> list[str]:
    """Names of the splits that `simclr pack` wrote into a directory, none for any other text."""
    if not is_remote(path) and os.sep not in path:
        return []
    check_reachable(path)
    return sorted(file.name.removesuffix(INDEX) for file in epath.Path(user_path(path)).glob(f'*{INDEX}'))


def _resolve_npz(path: str) -> DatasetSpec:
    if '{split}' not in path:
        raise DataError(f"data set '{path}': one file holds one split; write {{split}} where the files' names differ")

    check_reachable(path)

    def has(split: str) -> bool:
        return is_file(user_path(path.replace('{split}', split)))

    there = ', '.join(filter(has, ('train', *TEST_NAMES)))
    return DatasetSpec('arrays', '', path, *_choose_splits(path, has, there))


def _choose_splits(text: str, has: Callable[[str], bool], there: str) -> tuple[str, str, str]:
    """Names of the splits for training, testing and validation. The last is '' if it is missing."""
    test = next(filter(has, TEST_NAMES), None)
    if not has('train') or test is None:
        raise DataError(
            f"data set '{text}' must have the splits train and test (or validation, val, valid); "
            f'there are: {there or "none"}'
        )
    return 'train', test, next(filter(has, VALIDATION_NAMES), '') if test == 'test' else ''


def resolve_split(dataset: str, split: str, data_dir: str = '') -> tuple[dict[str, str], str]:
    """Finds one split of a data set, which needs no others.

    Args:
        dataset: Name of the data set, see `resolve_dataset`. A folder and an .npz need no splits.
        split: Name of the split. '' means the test split, or all images where there are no splits.
        data_dir: Directory of TensorFlow Datasets' data sets.

    Returns:
        The fields source, name and path of the configuration's group `data`, and the name of the split.

    Raises:
        DataError: There is no such data set.
    """
    if dataset.endswith('.npz'):
        if '{split}' in dataset:
            split = split or _split_to_test(dataset, is_file) or 'test'
        return {'source': 'arrays', 'name': '', 'path': dataset}, split
    packed = _packed_splits(dataset)
    if packed:
        chosen = next((name for name in (*TEST_NAMES, *packed) if name in packed), '')
        return {'source': 'packed', 'name': '', 'path': user_path(dataset)}, split or chosen
    if _is_folder(dataset):
        path = user_path(dataset.removeprefix(FOLDER))
        split = split or _split_to_test(os.path.join(path, '{split}'), lambda path: path.is_dir())
        return {'source': 'folder', 'name': '', 'path': path}, split
    try:
        spec = resolve_dataset(dataset, data_dir)
    except DataError:
        if not split:
            raise
        # The data set may have this split, but no test split.
        return {'source': 'tfds', 'name': dataset, 'path': data_dir}, split
    return {'source': spec.source, 'name': spec.name, 'path': spec.path}, split or spec.eval_split


def _is_folder(dataset: str) -> bool:
    is_path = dataset.startswith((FOLDER, os.sep, '.', '~')) or is_remote(dataset)
    return is_path or (os.sep in dataset and epath.Path(dataset).is_dir())


def _split_to_test(pattern: str, is_there: Callable[[epath.Path], bool]) -> str:
    """The name of the test split, read off the files or directories. '' if there is none."""
    check_reachable(pattern)
    paths = {name: epath.Path(user_path(pattern.replace('{split}', name))) for name in TEST_NAMES}
    return next((name for name, path in paths.items() if is_there(path)), '')
