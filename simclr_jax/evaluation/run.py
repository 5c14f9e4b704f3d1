"""The story of `simclr evaluate`: each encoder, data set, protocol and label budget gives scores."""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from simclr_jax import distributed
from simclr_jax.config import ConfigError, check_evaluation
from simclr_jax.config.label_budget import Labels, parse_labels
from simclr_jax.config.paths import directory_path, printable
from simclr_jax.data.spec import DataError
from simclr_jax.evaluation.datasets import Dataset, dataset_name, open_dataset, open_images
from simclr_jax.evaluation.extractor import FeatureExtractor, Progress, make_baseline, no_progress, open_extractor
from simclr_jax.evaluation.masked_datasets import MaskedDataset, Predictions
from simclr_jax.evaluation.protocols import PROTOCOLS, Protocol
from simclr_jax.evaluation.protocols.measurement import MeasurementOn
from simclr_jax.evaluation.result_file import ResultFile
from simclr_jax.evaluation.results import ENCODERS, Results, Score, amount, cell, headings
from simclr_jax.training import workdir

# Data sets, each with the protocols that are measured on it.
Opened = list[tuple[Dataset | MaskedDataset, list[Protocol]]]


def evaluate(
    config: ConfigDict,
    directory: str,
    say: Callable[[str], None] = print,
    progress: Progress = no_progress,
    show: Callable[[Predictions], None] = lambda predictions: None,
) -> Results:
    """Evaluates the newest checkpoint of a work directory and writes its result.json.

    Scores of another evaluation of the same checkpoint stay in it, unless they are measured again. A directory that
    cannot be written is evaluated too, by protocols that do not train. Then nothing is kept, and `say` receives each
    score at once.

    Args:
        config: Configuration of an evaluation, for example from `config.load_evaluation`. It is checked first.
        directory: Work directory, local or gs://. Its config.json and the `model` of its newest checkpoint are needed.
        say: Function that receives lines for the user.
        progress: Shows how encoding goes on, see `extractor.Progress`.
        show: Function that receives predicted segmentations for a picture, in the first process.

    Returns:
        All scores that result.json now holds. `not_kept` says why it does not hold them.

    Raises:
        ConfigError, CheckpointError, DataError: The user has to change something.
        meter.NotFiniteError: The loss of a training is not finite.
        loop.Preempted: SIGTERM came during a training, which has saved.
    """
    problems = check_evaluation(config)
    if problems:
        raise ConfigError(problems)
    directory = directory_path(directory)
    protocols = [protocol for name in config.protocols for protocol in PROTOCOLS if protocol.name == name]
    home = workdir.read_config(directory).data
    opened = _open_all(config, home, protocols)
    for dataset, _ in opened:
        for note in dataset.notes:
            say(note)
    file = ResultFile(directory, dataset_name('', home), say) if distributed.is_first() else None
    _check_place(directory, file, protocols)
    trained, step = open_extractor(
        directory,
        image_size=config.image_size,
        crop_share=config.crop_share,
        batch_size=config.batch_size,
        say=say,
        progress=progress,
    )
    results = None
    for name in (*config.baselines, 'simclr'):
        extractor = trained if name == 'simclr' else make_baseline(trained, name)
        for protocol, measurement in _measurements(extractor, opened, config, directory, say, show):
            dataset = measurement.dataset
            budget = f', {amount(str(measurement.labels))}' if protocol.by_budget else ''
            say(f'{ENCODERS[name]}, {dataset.description}: {protocol.name}{budget}')
            start = time.perf_counter()
            found = _measure(protocol, measurement)
            _tell(found, time.perf_counter() - start, say)
            # The scores are written at once, because a later protocol may fail, or take days.
            results = Results(step, tuple(found), {dataset.name: dataset.description}).joined_to(results)
            if file is not None:
                results = file.add(results)
    if results is None:
        raise DataError(
            f'nothing to measure: {", ".join(config.protocols)} cannot be applied to these data sets, encoders and '
            'label budgets; choose other --protocols'
        )
    return results


def _open_all(config: ConfigDict, home: ConfigDict, protocols: list[Protocol]) -> Opened:
    """Opens all data sets, without labels only what is to be measured. The error names all that cannot be opened."""
    sharing = [protocol for protocol in protocols if protocol.open_own is None]
    ways = [(functools.partial(_open_shared, text, home, sharing), sharing) for text in config.datasets if sharing]
    ways += [(functools.partial(own.open_own, config, home), [own]) for own in protocols if own.open_own is not None]
    opened, problems = [], []
    for open_one, measured in ways:
        try:
            opened.append((open_one(), measured))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError('\n'.join(problems))
    return opened


def _open_shared(text: str, home: ConfigDict, protocols: list[Protocol]) -> Dataset:
    """Opens one of `config.datasets`, and checks that the protocols can be measured on it."""
    if not any(protocol.needs_labels for protocol in protocols):
        return open_images(text, home)
    dataset = open_dataset(text, home)
    _check(dataset, protocols)
    return dataset


def _measurements(
    extractor: FeatureExtractor,
    opened: Opened,
    config: ConfigDict,
    directory: str,
    say: Callable[[str], None],
    show: Callable[[Predictions], None],
) -> Iterator[tuple[Protocol, MeasurementOn[Any]]]:
    """Each protocol that applies, on each data set, with each label budget that it can work with."""
    asked = [parse_labels(text) for text in config.labels]
    for dataset, protocols in opened:
        if dataset.remark:
            say(dataset.remark)
        for protocol in protocols:
            for labels in _budgets(protocol, extractor, dataset, asked, say):
                yield protocol, MeasurementOn[Any](extractor, dataset, labels, config, directory, say, show)


def _budgets(
    protocol: Protocol,
    extractor: FeatureExtractor,
    dataset: Dataset | MaskedDataset,
    asked: list[Labels],
    say: Callable[[str], None],
) -> list[Labels]:
    """The label budgets that a protocol is measured with. There is none where it does not apply."""
    if extractor.name == 'pixels' and not protocol.on_pixels:
        say(f'{protocol.name}: cannot measure raw pixels; left out.')
        return []
    if isinstance(dataset, Dataset) and dataset.train.is_multi_label and not protocol.several_labels:
        say(f'{protocol.name}: needs one label per image, {dataset.name} has several; left out.')
        return []
    if not protocol.by_budget:
        return [Labels()]
    if not protocol.per_class:
        for labels in asked:
            if labels.per_class:
                say(f'{protocol.name}: takes shares of the images, no number per class; {labels} left out.')
        return [labels for labels in asked if not labels.per_class]
    too_few = [labels for labels in asked if labels.per_class and labels.per_class < protocol.least_per_class]
    for labels in too_few:
        say(f'{protocol.name}: needs at least {protocol.least_per_class} labels per class; {labels} left out.')
    return [labels for labels in asked if labels not in too_few]


def _measure(protocol: Protocol, measurement: MeasurementOn[Any]) -> list[Score]:
    try:
        return protocol.evaluate(measurement)
    except DataError:
        raise
    except ValueError as error:
        # The probes check their input: they need enough examples per class and more than one class, for example.
        raise DataError(f'{protocol.name} on {measurement.dataset.name}: {error}') from error


def _check_place(directory: str, file: ResultFile | None, protocols: list[Protocol]) -> None:
    """Raises ConfigError if a protocol has to train in a directory that cannot be written. Every process asks."""
    if distributed.all_agree(file is None or file.error is None):
        return
    training = [protocol.name for protocol in protocols if protocol.needs_training]
    if training:
        raise ConfigError(
            [
                f'--workdir={directory} cannot be written, and {", ".join(training)} keep their trainings there; '
                'evaluate a copy of it, or choose other --protocols'
            ]
        )


def _tell(scores: list[Score], seconds: float, say: Callable[[str], None]) -> None:
    """Says scores as they come, and how long they took."""
    titles = headings(score.row for score in scores)
    for score in scores:
        say(f'  {printable(titles[score.row])}: {cell(score)}')
    say(f'  measured in {seconds:.0f} s')


def _check(dataset: Dataset, protocols: list[Protocol]) -> None:
    """Raises DataError unless the data set has the labels that the protocols need, of at least two classes."""
    supervised = [protocol.name for protocol in protocols if protocol.needs_labels]
    if not supervised:
        return
    for part in (dataset.train, dataset.test):
        if not part.num_classes or (part.labels is not None and not (part.labels >= 0).any()):
            raise DataError(
                f'{part.name} has no labels, and {", ".join(supervised)} need them; only --protocols=measures works '
                'without labels'
            )
    if dataset.num_classes < 2:
        raise DataError(
            f'{dataset.train.name} has only one class, {dataset.train.class_names[0]}; choose a data set with at '
            'least two'
        )
