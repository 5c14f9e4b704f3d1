"""What a trained encoder is worth: its work directory to a table of accuracies."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from simclr_jax import parallel, workdir
from simclr_jax.checkpoints import Checkpoints
from simclr_jax.config import ConfigError
from simclr_jax.data.sources import align_classes, load_examples
from simclr_jax.data.spec import DataError, Examples
from simclr_jax.evaluators import logistic
from simclr_jax.evaluators.features import Features, extract
from simclr_jax.evaluators.knn import knn_accuracy
from simclr_jax.evaluators.subsets import balanced_subset, train_validation_split
from simclr_jax.tasks.pretrain import make_task

PROTOCOLS = ('knn', 'linear')
BASELINES = ('pixels', 'untrained')
NAMES = {'pixels': 'raw pixels', 'untrained': 'untrained encoder', 'simclr': 'SimCLR'}
# Draws of few labels over which the accuracy is averaged.
FEW_LABEL_DRAWS = 10
# Share of the labels held out to choose the regularisation; classes with fewer labels get L2_OF_FEW instead.
VALIDATION_SHARE = 0.2
LABELS_TO_VALIDATE = 20
L2_OF_FEW = 1.0


@dataclasses.dataclass(frozen=True)
class Score:
    """One cell of the table: mean accuracy in [0, 1] over draws of labels, and its standard deviation."""

    features: str
    protocol: str
    labels_per_class: int | None
    top1: float
    deviation: float


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        step: of the checkpoint.
        train, test: names and sizes of the splits.
        scores: all cells.
    """

    step: int
    train: str
    test: str
    scores: list[Score]


def evaluate(
    directory: str,
    *,
    protocols: Sequence[str] = PROTOCOLS,
    labels_per_class: Sequence[int | None] = (None,),
    baselines: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> Evaluation:
    """Evaluates the newest checkpoint of a work directory and writes its result.json.

    Args:
        directory: the work directory.
        protocols: of PROTOCOLS. 'knn': cosine kNN with the k of the configuration (few labels: k at most
            their number). 'linear': logistic regression by L-BFGS on the frozen features, its l2 chosen
            on a fifth of the training split (fewer than 20 labels a class: l2 = 1).
        labels_per_class: numbers of training labels a class; None: all.
        baselines: of BASELINES, measured in the same way.
        say: called with lines for the user.

    Raises:
        ConfigError, CheckpointError, DataError: something that the user has to change.
    """
    config = workdir.read_config(directory)
    mesh = parallel.make_mesh()
    if not config.data.eval_split:
        raise ConfigError(["data.eval_split='': there is no split to evaluate on; train with one"])
    train = load_examples(config.data, config.data.split)
    test = align_classes(load_examples(config.data, config.data.eval_split), train)
    if not train.num_classes or not test.num_classes:
        raise DataError(f'{train.name} and {test.name} need labels for {", ".join(protocols)}; there are none')
    checkpoints = Checkpoints(directory, say=say)
    variables, step = checkpoints.restore_model(mesh)
    checkpoints.close()

    task = make_task(config, train.num_classes, mesh)
    encode = jax.jit(task.encode)
    encoders = {
        'pixels': lambda images: images.reshape(images.shape[0], -1),
        'untrained': functools.partial(encode, jax.jit(task.init)(jax.random.key(config.seed))),
        'simclr': functools.partial(encode, variables),
    }
    scores = []
    for name in (*baselines, 'simclr'):
        say(f'Features of {train.name} and {test.name}: {NAMES[name]}')
        bank = _features(config, train, encoders[name], mesh)
        queries = _features(config, test, encoders[name], mesh)
        for protocol in protocols:
            for count in labels_per_class:
                scores.append(_score(config, name, protocol, count, bank, queries, train.num_classes))
    evaluation = Evaluation(step, f'{train.name} ({train.size:,})', f'{test.name} ({test.size:,})', scores)
    workdir.write_result(directory, _result(evaluation))
    return evaluation


def _features(config, examples: Examples, encode, mesh: Mesh) -> Features:
    from simclr_jax.data.pipeline import Share, eval_batches

    share = Share(jax.process_index(), jax.process_count())
    batch_size = config.batch_size // mesh.size * mesh.size or mesh.size
    batches = eval_batches(examples, config.data.image_size, batch_size=batch_size, share=share)
    return extract(encode, batches, mesh)


def _score(config, name: str, protocol: str, count: int | None, bank: Features, queries: Features, num_classes: int):
    accuracy = _knn if protocol == 'knn' else _linear
    values = []
    for draw in range(1 if count is None else FEW_LABEL_DRAWS):
        chosen = slice(None) if count is None else balanced_subset(bank.labels, per_class=count, seed=draw)
        values.append(accuracy(config, bank.values[chosen], bank.labels[chosen], queries, num_classes, count))
    return Score(name, protocol, count, float(np.mean(values)), float(np.std(values)))


def _knn(config, features, labels, queries: Features, num_classes: int, count: int | None) -> float:
    k = config.knn.k[0] if count is None else min(config.knn.k[0], count)
    accuracies = knn_accuracy(
        features,
        labels,
        queries.values,
        queries.labels,
        k=(min(k, len(labels)),),
        temperature=config.knn.temperature,
        num_classes=num_classes,
    )
    return next(iter(accuracies.values()))


def _linear(config, features, labels, queries: Features, num_classes: int, count: int | None) -> float:
    if count is not None and count < LABELS_TO_VALIDATE:
        weights = logistic.fit(features, labels, num_classes, L2_OF_FEW)
    else:
        fitted, held_out = train_validation_split(labels, VALIDATION_SHARE, seed=config.seed)
        path = logistic.fit_path(features[fitted], labels[fitted], features[held_out], labels[held_out], num_classes)
        weights = path.weights
    return logistic.accuracy(weights, queries.values, queries.labels)


def _result(evaluation: Evaluation) -> dict:
    ours = {
        score.protocol: score.top1
        for score in evaluation.scores
        if score.features == 'simclr' and score.labels_per_class is None
    }
    return {
        'step': evaluation.step,
        **{f'{protocol}_top1': top1 for protocol, top1 in ours.items()},
        'train': evaluation.train,
        'test': evaluation.test,
        'scores': [dataclasses.asdict(score) for score in evaluation.scores],
    }
