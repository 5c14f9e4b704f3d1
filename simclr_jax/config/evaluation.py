"""The configuration of an evaluation: its fields, their defaults and the values that they accept.

Without a configuration file `simclr evaluate` starts from `base_evaluation()`. A file defines `get_config(arg='')`,
like one of a pretraining. Examples are in configs/evaluate/.
"""

import math
from collections.abc import Iterable

from ml_collections import ConfigDict

from simclr_jax.config import schema
from simclr_jax.config.label_budget import parse_labels
from simclr_jax.config.schema import AMOUNT, BELOW_ONE, COUNT, NATURAL, POSITIVE, Schema

# FROZEN protocols classify fixed features. TRAINED protocols train on augmented images.
FROZEN = ('knn', 'linear', 'svm', 'low_shot')
TRAINED = ('linear_sgd', 'finetune', 'multihead')
PROTOCOLS = (*FROZEN, *TRAINED, 'measures')
BASELINES = ('pixels', 'untrained')
LAYERS = ('h', 'feature1', 'feature2', 'feature3', 'feature4', 'feature5')


def base_evaluation() -> ConfigDict:
    """Returns all fields with their defaults: the settings of the papers."""
    config = ConfigDict()
    # Any of knn, linear, svm, low_shot, linear_sgd, finetune, multihead, measures.
    config.protocols = ('knn', 'linear')  # Protocols to run.
    # '': the data of the pretraining. Otherwise a name of the transfer suite or of TFDS, folder:PATH or an .npz file.
    config.datasets = ('',)  # Data sets to evaluate on.
    config.labels = ('all',)  # Label budgets: all, a number per class ('10') or a share of the labels ('1%').
    config.baselines = ()  # Features to compare with: pixels, untrained.
    config.seed = 0  # Seed of the subsets, folds, new classifiers, order of the images and augmentation.
    config.draws = 10  # Random subsets that results on frozen features are averaged over, for few labels.
    config.image_size = 0  # Height and width of an image in pixels. 0: size of the pretraining.
    config.crop_share = 0.875  # Side of the central crop / shorter side of the image. Up to 32 pixels: no crop.
    config.batch_size = 0  # Images per batch of the encoder. 0: batch size of the pretraining.
    config.validation_share = 0.2  # Share of the labels that chooses settings, if there is no validation split.
    config.bootstrap_draws = 1000  # Resamplings of the test images for each 95 % interval.

    config.knn = knn = ConfigDict()
    knn.k = (10, 20, 100, 200)  # Numbers of neighbours that vote. Each gives one accuracy.
    knn.temperature = 0.07  # Temperature of the weights of the votes, exp(similarity / temperature).

    config.linear = linear = ConfigDict()  # Logistic regression by L-BFGS on frozen features.
    linear.lambdas = 45  # Number of log-spaced l2 penalties that the validation chooses from.
    linear.smallest = 1e-6  # Smallest l2 penalty.
    linear.largest = 1e5  # Largest l2 penalty.

    config.svm = svm = ConfigDict()  # Linear SVM, for the protocols svm and low_shot.
    svm.layers = ('h',)  # Features: h, or the pooled maps feature1 (stem) to feature5 (last stage).
    svm.positives = (1, 2, 4, 8, 16, 32, 64, 96)  # low_shot: positives per class. Negatives are 19 times as many.
    svm.samples = 5  # low_shot: random draws that each result is averaged over.

    config.linear_sgd = training(epochs=90.0, batch_size=4096, learning_rate=0.1)
    config.finetune = training(epochs=30.0, batch_size=4096, learning_rate=0.05)
    config.finetune.after_block = -1  # Trained part: -1: everything. 0: all after the stem. 1 to 4: after that stage.
    config.finetune.head_layer = 0  # Layer of the projection head to start from (SimCLRv2: 1). 0: h.
    # 0: max(1 - 10 / steps per epoch, 0.9), as in the transfer experiments.
    config.finetune.batch_norm_momentum = 0.9  # Momentum of the batch norm statistics.
    # If both grids are given, validation images choose learning rate and weight decay from all pairs. The value of
    # grid_weight_decays is divided by the learning rate, as in the transfer experiments.
    config.finetune.grid_learning_rates = ()  # Learning rates to choose from. (): finetune.learning_rate.
    config.finetune.grid_weight_decays = ()  # Weight decays to choose from. (): finetune.weight_decay.
    config.multihead = training(epochs=90.0, batch_size=256, learning_rate=0.01)
    config.multihead.scaling = 'none'
    config.multihead.weight_decay = 1e-4
    config.multihead.milestones = (30.0, 60.0)  # Epochs after which the learning rate is divided by 10.

    config.measures = measures = ConfigDict()  # Without labels: alignment, uniformity, effective rank, agreement.
    measures.images = 10000  # Largest number of test images.
    measures.neighbours = 10  # Neighbours that are compared between two views of an image.
    return config.lock()


def training(*, epochs: float, batch_size: int, learning_rate: float) -> ConfigDict:
    """Returns the settings for training a classifier on augmented images (crop and flip), as in the papers.

    Args:
        epochs: Passes over the labelled images.
        batch_size: Images per batch.
        learning_rate: Learning rate before the scaling with the batch size.
    """
    config = ConfigDict()
    config.epochs = epochs  # Passes over the labelled images.
    config.steps = 0  # Optimizer updates. 0: computed from epochs.
    config.warmup_epochs = 0.0  # Epochs of linear warm-up of the learning rate.
    config.batch_size = batch_size  # Images per batch, at most the number of labelled images.
    config.optimizer = 'momentum'  # lars | momentum (Nesterov) | adam.
    config.learning_rate = learning_rate  # Learning rate before the scaling with the batch size.
    config.scaling = 'linear'  # Factor for batch size B: linear (B / 256) | sqrt (sqrt(B)) | none.
    config.weight_decay = 0.0  # lars: on kernels. momentum, adam: on all parameters except batch norm.
    config.momentum = 0.9  # lars, momentum: momentum.
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
            problems.append(f'{field}={chosen!r}: unknown {", ".join(unknown)}; choose from {", ".join(allowed)}')
        if not chosen and field != 'baselines':
            problems.append(f'{field}={chosen!r}: choose at least one of {", ".join(allowed)}')
    for text in config.labels:
        try:
            parse_labels(str(text))
        except ValueError as error:
            problems.append(str(error))
    if not config.datasets or not config.labels:
        problems.append(
            f'datasets={config.datasets!r}, labels={config.labels!r}: each needs at least one value; '
            "the defaults are ('',) and ('all',)"
        )
    if config.linear.smallest > config.linear.largest:
        problems.append(
            f'linear.smallest={config.linear.smallest}: must not be above linear.largest={config.linear.largest}'
        )
    if bool(config.finetune.grid_learning_rates) != bool(config.finetune.grid_weight_decays):
        problems.append('finetune.grid_learning_rates, finetune.grid_weight_decays: set both or neither')
    return problems


SCHEMA = Schema(base_evaluation, RANGES, CHOICES, _check_together)


def check_evaluation(config: ConfigDict) -> list[str]:
    """Checks the values of an evaluation's configuration. Returns one message for each problem."""
    return schema.check(SCHEMA, config)


def load_evaluation(spec: str = '', overrides: Iterable[tuple[str, str]] = ()) -> ConfigDict:
    """Reads the configuration of an evaluation, applies overrides and validates the result.

    Args:
        spec: Path of a configuration file, then ':' and the argument of its `get_config` if it needs one. '': the
            defaults.
        overrides: Pairs (dotted field, text), for example ('linear.lambdas', '5').

    Returns:
        The locked configuration.

    Raises:
        ConfigError: The file, an override or a value is wrong. The error lists all problems at once.
    """
    if spec:
        return schema.load(SCHEMA, spec, overrides)
    return schema.override(SCHEMA, base_evaluation(), overrides)
