"""The configuration of an evaluation: every field with its default, and what may stand in it.

Without a file `simclr evaluate` starts from `base_evaluation()`; a file holds `get_config(arg='')` as one of a
pretraining does, see configs/evaluate/.
"""

import math
from collections.abc import Iterable

from ml_collections import ConfigDict

from simclr_jax.config import schema
from simclr_jax.config.label_budget import parse_labels
from simclr_jax.config.schema import AMOUNT, BELOW_ONE, COUNT, NATURAL, POSITIVE, Schema

# Protocols that classify features as they are, and those that train on augmented images.
FROZEN = ('knn', 'linear', 'svm', 'low_shot')
TRAINED = ('linear_sgd', 'finetune', 'multihead')
PROTOCOLS = (*FROZEN, *TRAINED, 'measures')
BASELINES = ('pixels', 'untrained')
LAYERS = ('h', 'feature1', 'feature2', 'feature3', 'feature4', 'feature5')


def base_evaluation() -> ConfigDict:
    """Every field and its default: the settings of the papers."""
    config = ConfigDict()
    config.protocols = ('knn', 'linear')  # of knn, linear, svm, low_shot, linear_sgd, finetune, multihead, measures
    config.datasets = ('',)  # '': that of the pretraining; a name of the transfer suite or TFDS, folder:PATH, .npz
    config.labels = ('all',)  # to learn from: all, so many a class ('10'), or a share ('1%')
    config.baselines = ()  # also measure: pixels, untrained
    config.seed = 0  # subsets, folds, fresh classifiers, order and augmentation follow from it
    config.draws = 10  # subsets over which protocols on frozen features are averaged, where labels are few
    config.image_size = 0  # pixels; 0: that of the pretraining
    config.crop_share = 0.875  # of the shorter side, in the central crop (no crop up to 32 pixels)
    config.batch_size = 0  # images encoded at a time; 0: that of the pretraining
    config.validation_share = 0.2  # held out of the labels to choose settings, where a data set has no such split
    config.bootstrap_draws = 1000  # resamplings of the test images behind each 95 % interval

    config.knn = knn = ConfigDict()
    knn.k = (10, 20, 100, 200)  # neighbours that vote
    knn.temperature = 0.07  # of the votes' weights exp(similarity / temperature)

    config.linear = linear = ConfigDict()  # logistic regression by L-BFGS on frozen features
    linear.lambdas = 45  # strengths of the l2 penalty, log-spaced, of which validation chooses
    linear.smallest = 1e-6  # of them
    linear.largest = 1e5

    config.svm = svm = ConfigDict()  # also of low_shot
    svm.layers = ('h',)  # h, or the pooled maps feature1 (stem) to feature5 (last stage)
    svm.positives = (1, 2, 4, 8, 16, 32, 64, 96)  # low_shot: examples of each class, with 19 times as many of others
    svm.samples = 5  # low_shot: draws over which each is averaged

    config.linear_sgd = training(epochs=90.0, batch_size=4096, learning_rate=0.1)
    config.finetune = training(epochs=30.0, batch_size=4096, learning_rate=0.05)
    config.finetune.after_block = -1  # train what comes after: -1: everything, 0: the stem, 1 to 4: that stage
    config.finetune.head_layer = 0  # start from this layer of the projection head; 0: from h (SimCLRv2: 1)
    config.finetune.batch_norm_momentum = 0.9  # 0: max(1 - 10 / steps an epoch, 0.9), as in the transfer suite
    # Not empty: the rate and decay are chosen on validation images from each pair of these (decay / rate is used).
    config.finetune.grid_learning_rates = ()
    config.finetune.grid_weight_decays = ()
    config.multihead = training(epochs=90.0, batch_size=256, learning_rate=0.01)
    config.multihead.scaling = 'none'
    config.multihead.weight_decay = 1e-4
    config.multihead.milestones = (30.0, 60.0)  # epochs after which the learning rate falls to a tenth

    config.measures = measures = ConfigDict()  # without labels: alignment, uniformity, effective rank, agreement
    measures.images = 10000  # of the test split, at most
    measures.neighbours = 10  # that are compared between two views
    return config.lock()


def training(*, epochs: float, batch_size: int, learning_rate: float) -> ConfigDict:
    """How a classifier is trained on cropped and flipped images; the papers' optimiser."""
    config = ConfigDict()
    config.epochs = epochs  # passes over the labelled images
    config.steps = 0  # optimiser updates; 0: from epochs
    config.warmup_epochs = 0.0  # linear warm-up of the learning rate
    config.batch_size = batch_size  # at most the number of labelled images is taken
    config.optimizer = 'momentum'  # lars | momentum (Nesterov) | adam
    config.learning_rate = learning_rate  # before scaling with the batch
    config.scaling = 'linear'  # linear (times B / 256) | sqrt (times sqrt(B)) | none
    config.weight_decay = 0.0  # lars: kernels; momentum, adam: all but batch norm
    config.momentum = 0.9  # of lars and momentum
    return config


_RATES = ('finite numbers > 0', lambda value: all(isinstance(rate, float) and 0 < rate < math.inf for rate in value))
_DECAYS = (
    'finite numbers >= 0',
    lambda value: all(isinstance(decay, float | int) and 0 <= decay < math.inf for decay in value),
)
_COUNTS = ('integers >= 1', lambda value: bool(value) and all(type(k) is int and k >= 1 for k in value))
_TRAINING_RANGES = {
    'epochs': POSITIVE,
    'steps': NATURAL,
    'warmup_epochs': AMOUNT,
    'batch_size': COUNT,
    'learning_rate': POSITIVE,
    'weight_decay': AMOUNT,
    'momentum': BELOW_ONE,
}

RANGES = {
    'seed': ('an integer in [0, 2^31)', lambda value: 0 <= value < 2**31),
    'draws': COUNT,
    'image_size': NATURAL,
    'crop_share': ('a number in (0, 1]', lambda value: 0 < value <= 1),
    'batch_size': NATURAL,
    'validation_share': ('a number in (0, 1)', lambda value: 0 < value < 1),
    'bootstrap_draws': ('an integer >= 100', lambda value: value >= 100),
    'knn.k': _COUNTS,
    'knn.temperature': POSITIVE,
    'linear.lambdas': COUNT,
    'linear.smallest': POSITIVE,
    'linear.largest': POSITIVE,
    'svm.positives': _COUNTS,
    'svm.samples': COUNT,
    'finetune.after_block': ('an integer from -1 to 4', lambda value: -1 <= value <= 4),
    'finetune.head_layer': NATURAL,
    'finetune.batch_norm_momentum': BELOW_ONE,
    'finetune.grid_learning_rates': _RATES,
    'finetune.grid_weight_decays': _DECAYS,
    'multihead.milestones': _RATES,
    'measures.images': ('an integer >= 2', lambda value: value >= 2),
    'measures.neighbours': COUNT,
} | {f'{group}.{field}': rule for group in TRAINED for field, rule in _TRAINING_RANGES.items()}

CHOICES = {
    f'{group}.{field}': choices
    for group in TRAINED
    for field, choices in (('optimizer', ('lars', 'momentum', 'adam')), ('scaling', ('linear', 'sqrt', 'none')))
}


def _check_together(config: ConfigDict) -> list[str]:
    problems = []
    for field, allowed in (('protocols', PROTOCOLS), ('baselines', BASELINES), ('svm.layers', LAYERS)):
        chosen = config.svm.layers if field == 'svm.layers' else config[field]
        unknown = [str(member) for member in chosen if member not in allowed]
        if unknown:
            problems.append(f'{field}={chosen!r}: unknown {", ".join(unknown)}; there are: {", ".join(allowed)}')
        if not chosen and field != 'baselines':
            problems.append(f'{field}={chosen!r}: choose at least one of {", ".join(allowed)}')
    for text in config.labels:
        try:
            parse_labels(str(text))
        except ValueError as error:
            problems.append(str(error))
    if not config.datasets or not config.labels:
        problems.append(f"datasets={config.datasets!r}, labels={config.labels!r}: one at least; for example 'all'")
    if config.linear.smallest > config.linear.largest:
        problems.append(f'linear.smallest={config.linear.smallest}: must not be above linear.largest')
    if bool(config.finetune.grid_learning_rates) != bool(config.finetune.grid_weight_decays):
        problems.append('finetune.grid_learning_rates, finetune.grid_weight_decays: give both or neither')
    return problems


SCHEMA = Schema(base_evaluation, RANGES, CHOICES, _check_together)


def load_evaluation(spec: str = '', overrides: Iterable[tuple[str, str]] = ()) -> ConfigDict:
    """Reads a configuration of an evaluation ('': the base), applies overrides and validates it; see `schema.load`.

    Raises:
        ConfigError: with every problem at once.
    """
    if spec:
        return schema.load(SCHEMA, spec, overrides)
    return schema.override(SCHEMA, base_evaluation(), overrides)
