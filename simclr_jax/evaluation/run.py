"""What a trained encoder is worth: its work directory, data sets and protocols to a table of scores."""

from collections.abc import Callable, Iterator

from ml_collections import ConfigDict

from simclr_jax import distributed
from simclr_jax.config.evaluation import FROZEN, TRAINED
from simclr_jax.config.label_budget import Labels, parse_labels
from simclr_jax.data.spec import DataError
from simclr_jax.evaluation.datasets import Dataset, dataset_name, open_dataset
from simclr_jax.evaluation.extractor import FeatureExtractor, make_baseline, open_extractor
from simclr_jax.evaluation.protocols.by_training import evaluate_trained
from simclr_jax.evaluation.protocols.label_free import evaluate_views
from simclr_jax.evaluation.protocols.on_features import evaluate_frozen
from simclr_jax.evaluation.results import ENCODERS, Results, Score, amount, read_results, write_results
from simclr_jax.probes.svm import FOLDS
from simclr_jax.training import workdir


def evaluate(config: ConfigDict, directory: str, say: Callable[[str], None] = print) -> Results:
    """Evaluates the newest checkpoint of a work directory and writes its result.json.

    Scores of an earlier evaluation of the same checkpoint stay in it, unless they are measured again.

    Args:
        config: a checked configuration (config.load_evaluation).
        directory: the work directory; config.json and the newest checkpoint's `model` are all that is needed.
        say: called with lines for the user.

    Returns:
        All scores that result.json now has.

    Raises:
        ConfigError, CheckpointError, DataError: something that the user has to change.
        meter.NotFiniteError: a training's loss is no number any more.
        loop.Preempted: SIGTERM came in a training.
    """
    amounts = [parse_labels(text) for text in config.labels]
    home = workdir.read_config(directory).data
    results = read_results(directory)
    datasets = _open_all(config.datasets, home)
    for dataset in datasets:
        _check(dataset, config)
    trained, step = open_extractor(
        directory,
        image_size=config.image_size,
        crop_share=config.crop_share,
        batch_size=config.batch_size,
        say=say,
    )
    is_measured = False
    for name in (*config.baselines, 'simclr'):
        encoder = trained if name == 'simclr' else make_baseline(trained, name)
        for dataset in datasets:
            if dataset.remark:
                say(dataset.remark)
            for protocol, labels in _measurements(config, encoder, dataset, amounts, say):
                say(
                    f'{ENCODERS[name]}, {dataset.description}: {protocol}{f", {amount(str(labels))}" if labels else ""}'
                )
                found = _measure(protocol, encoder, dataset, labels, config, directory)
                # Written at once: a later protocol may fail, or take days.
                results = Results(step, tuple(found), {dataset.name: dataset.description}).joined_to(results)
                is_measured = True
                if distributed.is_first():
                    write_results(directory, results, dataset_name('', home))
    if not is_measured:
        raise DataError(f'nothing to measure: {", ".join(config.protocols)} do not apply to what was asked')
    return results


def _open_all(names: tuple[str, ...], home: ConfigDict) -> list[Dataset]:
    """All data sets, or all that is wrong with them."""
    datasets, problems = [], []
    for text in names:
        try:
            datasets.append(open_dataset(text, home))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError('\n'.join(problems))
    return datasets


def _measurements(
    config: ConfigDict, encoder: FeatureExtractor, dataset: Dataset, amounts: list[Labels], say: Callable[[str], None]
) -> Iterator[tuple[str, Labels | None]]:
    """The protocols that apply, each with the numbers of labels it is asked for."""
    for protocol in config.protocols:
        if encoder.name == 'pixels' and protocol not in ('knn', 'linear'):
            say(f'{protocol}: not for raw pixels, left out.')
        elif dataset.train.is_multi_label and protocol in ('knn', 'multihead'):
            say(f'{protocol}: needs one label an image, {dataset.name} has several; left out.')
        elif protocol in ('measures', 'low_shot'):
            yield protocol, None
        else:
            for labels in amounts:
                if protocol == 'svm' and labels.per_class and labels.per_class < FOLDS:
                    say(f'svm: needs {FOLDS} labels a class, one for each fold; {labels} left out.')
                else:
                    yield protocol, labels


def _measure(
    protocol: str,
    encoder: FeatureExtractor,
    dataset: Dataset,
    labels: Labels | None,
    config: ConfigDict,
    directory: str,
) -> list[Score]:
    try:
        if protocol == 'measures':
            return evaluate_views(encoder, dataset, config)
        if protocol in FROZEN:
            return evaluate_frozen(protocol, encoder, dataset, labels or Labels(), config)
        assert protocol in TRAINED
        return evaluate_trained(protocol, encoder, dataset, labels, config, directory)
    except DataError:
        raise
    except ValueError as error:
        # The evaluators' own checks: too few examples of a class, one class only, ...
        raise DataError(f'{protocol} on {dataset.name}: {error}') from error


def _check(dataset: Dataset, config: ConfigDict) -> None:
    """Every protocol but the measures needs labels, and two classes to tell apart."""
    supervised = [protocol for protocol in config.protocols if protocol != 'measures']
    if not supervised:
        return
    for part in (dataset.train, dataset.test):
        if not part.num_classes or (part.labels is not None and not (part.labels >= 0).any()):
            raise DataError(
                f'{part.name} has no labels, and {", ".join(supervised)} need them; without labels there is '
                '--protocols=measures'
            )
    if dataset.num_classes < 2:
        raise DataError(
            f'{dataset.train.name} has one class only, {dataset.train.class_names[0]}: there is nothing to tell '
            'apart; take a data set with two or more'
        )
