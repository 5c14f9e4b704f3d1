"""The configuration of an evaluation: its fields, their defaults and the values that they accept.

Without a configuration file `simclr evaluate` starts from `base_evaluation()`. A file defines `get_config(arg='')`,
like one of a pretraining. Examples are in configs/evaluate/.
"""

import dataclasses
import math
import re
from collections.abc import Iterable

from ml_collections import ConfigDict

from simclr_jax.config import schema
from simclr_jax.config.fields import AMOUNT, BELOW_ONE, COUNT, COUNTS, NATURAL, POSITIVE, SEED, Field, defaults
from simclr_jax.config.label_budget import parse_labels
from simclr_jax.config.schema import Schema

# FROZEN protocols classify fixed features. TRAINED protocols train on augmented images. SEGMENTATION trains on images
# with masks, which it has for itself.
FROZEN = ('knn', 'linear', 'svm', 'low_shot')
TRAINED = ('linear_sgd', 'finetune', 'multihead')
SEGMENTATION = 'segmentation'
PROTOCOLS = (*FROZEN, *TRAINED, SEGMENTATION, 'classifier', 'measures')
BASELINES = ('pixels', 'untrained')
# Names of features: h, or the map of an encoder's part by its number, from the stem up.
LAYERS = ('h', 'feature1', 'feature2', '...')


_OPTIMIZERS = ('lars', 'momentum', 'adam')
_SCALINGS = ('linear', 'sqrt', 'none')
_BYTE = ('an integer from 0 to 255', lambda value: 0 <= value <= 255)
# Masks have 8 bits, and one of their numbers means that a pixel has no class.
_MOST_CLASSES = 255
_NUMBERS_ABOVE_0 = ('finite numbers > 0', lambda value: all(0 < member < math.inf for member in value))
_NUMBERS_FROM_0 = ('finite numbers >= 0', lambda value: all(0 <= member < math.inf for member in value))


_AFTER_BLOCK = (
    'Trained part: -1: everything. 0: all after the stem. k: all after part k, for ResNets stage k.',
    ('an integer >= -1', lambda value: value >= -1),
)


def _training(group: str, **changed: float | str) -> tuple[Field, ...]:
    """The fields of a group that trains a classifier on augmented images (crop and flip), as in the papers.

    Args:
        group: Name of the group.
        **changed: Defaults that differ between the groups, by the names of their fields.
    """
    fields = (
        Field('epochs', 90.0, 'Passes over the labelled images.', POSITIVE),
        Field('steps', 0, 'Optimizer updates. 0: computed from epochs.', NATURAL),
        Field('warmup_epochs', 0.0, 'Epochs of linear warm-up of the learning rate.', AMOUNT),
        Field('batch_size', 4096, 'Images per batch, at most the number of labelled images.', COUNT),
        Field('optimizer', 'momentum', 'Optimizer. momentum is that of Nesterov.', choices=_OPTIMIZERS),
        Field(
            'learning_rate',
            0.1,
            'Learning rate before the scaling with the batch size. It falls to 0 by a cosine, for multihead in steps.',
            POSITIVE,
        ),
        Field(
            'scaling',
            'linear',
            'Factor on the learning rate for batch size B: B / 256 (linear), sqrt(B) (sqrt) or 1 (none).',
            choices=_SCALINGS,
        ),
        Field(
            'weight_decay',
            0.0,
            'Weight decay. lars: on kernels. momentum, adam: on all parameters except batch norm.',
            AMOUNT,
        ),
        Field('momentum', 0.9, 'lars, momentum: momentum.', BELOW_ONE),
    )
    return tuple(
        dataclasses.replace(field, name=f'{group}.{field.name}', default=changed.get(field.name, field.default))
        for field in fields
    )


FIELDS = (
    Field('protocols', ('knn', 'linear'), f'Protocols to run: {", ".join(PROTOCOLS)}.'),
    Field(
        'datasets',
        ('',),
        "Data sets to evaluate on. '': the data of the pretraining. Otherwise a name of the transfer suite or of TFDS, "
        'folder:PATH or an .npz file.',
        is_path=True,
    ),
    Field(
        'labels',
        ('all',),
        "Label budgets: all, a number per class ('10') or a share of the labels ('1%'). segmentation: a share of the "
        'training images.',
    ),
    Field('baselines', (), f'Features to compare with: {", ".join(BASELINES)}.', of=str),
    Field('seed', 0, 'Seed of the subsets, folds, new classifiers, order of the images and augmentation.', SEED),
    Field('draws', 10, 'Random subsets that results on frozen features are averaged over, for few labels.', COUNT),
    Field(
        'image_size',
        0,
        'Height and width of an image in pixels. 0: size of the pretraining. Not for segmentation.',
        NATURAL,
    ),
    Field(
        'crop_share',
        0.875,
        'Side of the central crop / shorter side of the image. Up to 32 pixels: no crop. Not for segmentation.',
        ('a number in (0, 1]', lambda value: 0 < value <= 1),
    ),
    Field(
        'batch_size',
        0,
        'Images per batch of the encoder. 0: batch size of the pretraining. Not for segmentation.',
        NATURAL,
    ),
    Field(
        'validation_share',
        0.2,
        'Share of the labels that chooses settings, if there is no validation split.',
        ('a number in (0, 1)', lambda value: 0 < value < 1),
    ),
    Field(
        'bootstrap_draws',
        1000,
        'Resamplings of the test images for each 95 % interval.',
        ('an integer >= 100', lambda value: value >= 100),
    ),
    # On frozen features.
    Field('knn.k', (10, 20, 100, 200), 'Numbers of neighbours that vote. Each gives one accuracy.', COUNTS),
    Field('knn.temperature', 0.07, 'Temperature of the weights of the votes, exp(similarity / temperature).', POSITIVE),
    Field('linear.lambdas', 45, 'Number of log-spaced l2 penalties that the validation chooses from.', COUNT),
    Field('linear.smallest', 1e-6, 'Smallest l2 penalty.', POSITIVE),
    Field('linear.largest', 1e5, 'Largest l2 penalty.', POSITIVE),
    Field(
        'svm.layers',
        ('h',),
        f'svm, low_shot: features, h or the pooled maps of stem, stages and further parts: {", ".join(LAYERS)}.',
    ),
    Field(
        'svm.positives',
        (1, 2, 4, 8, 16, 32, 64, 96),
        'low_shot: positives per class. Negatives are 19 times as many.',
        COUNTS,
    ),
    Field('svm.samples', 5, 'low_shot: random draws that each result is averaged over.', COUNT),
    # By training on augmented images.
    *_training('linear_sgd', epochs=90.0, batch_size=4096, learning_rate=0.1),
    *_training('finetune', epochs=30.0, batch_size=4096, learning_rate=0.05),
    Field('finetune.after_block', -1, *_AFTER_BLOCK),
    Field('finetune.head_layer', 0, 'Layer of the projection head to start from (SimCLRv2: 1). 0: h.', NATURAL),
    Field(
        'finetune.batch_norm_momentum',
        0.9,
        'Momentum of the batch norm statistics. 0: max(1 - 10 / steps per epoch, 0.9), as in the transfer experiments.',
        BELOW_ONE,
    ),
    Field(
        'finetune.grid_learning_rates',
        (),
        'Learning rates to choose from. An empty list: finetune.learning_rate. '
        'With both grids, validation images choose learning rate and weight decay from all pairs.',
        _NUMBERS_ABOVE_0,
        of=float,
    ),
    Field(
        'finetune.grid_weight_decays',
        (),
        'Weight decays to choose from, divided by the learning rate. An empty list: finetune.weight_decay.',
        _NUMBERS_FROM_0,
        of=float,
    ),
    *_training('multihead', epochs=90.0, batch_size=256, learning_rate=0.01, scaling='none', weight_decay=1e-4),
    Field(
        'multihead.milestones',
        (30.0, 60.0),
        'Epochs after which the learning rate is divided by 10.',
        _NUMBERS_ABOVE_0,
    ),
    # By training on images with masks. The published recipes count steps, whatever the number of images, and decay the
    # learning rate by a polynomial.
    Field('segmentation.steps', 20_000, 'Optimizer updates.', COUNT),
    Field('segmentation.epochs', 0.0, 'Passes over the training images. 0: segmentation.steps counts.', AMOUNT),
    *(
        field
        for field in _training(SEGMENTATION, batch_size=16, learning_rate=0.01, scaling='none', weight_decay=5e-4)
        if field.name not in ('segmentation.epochs', 'segmentation.steps')
    ),
    Field(
        'segmentation.images',
        '',
        'Folder of the images. {split} stands for the name of a split. An image and its mask have the same path up to '
        'the extension.',
        is_path=True,
    ),
    Field(
        'segmentation.masks',
        '',
        'Folder of the masks: PNGs of 8 bits, grey or with a palette, with the number of a class in each pixel. Every '
        'mask and image must be readable, whatever data.max_unreadable of the pretraining.',
        is_path=True,
    ),
    Field(
        'segmentation.lists',
        '',
        "Text file with the images of a split, a path without extension on each line, as in VOC's "
        "ImageSets/Segmentation/{split}.txt. '': all images.",
        is_path=True,
    ),
    Field(
        'segmentation.tfds',
        '',
        'In place of folders: data set of TFDS with the features image and segmentation_mask, such as oxford_iiit_pet.',
    ),
    Field('segmentation.train_split', 'train', 'Name of the split to learn from.'),
    Field('segmentation.test_split', 'test', 'Name of the split to test on.'),
    Field('segmentation.ignore', 255, 'Number in the masks of pixels that do not count.', _BYTE),
    Field(
        'segmentation.first_class',
        0,
        'Number of the first class in the masks. Smaller numbers do not count. 1 for oxford_iiit_pet and ADE20K.',
        _BYTE,
    ),
    Field('segmentation.classes', 0, 'Number of classes. 0: the masks of the training split say it.', _BYTE),
    Field('segmentation.names', (), 'Names of the classes. An empty list: their numbers.', of=str),
    Field('segmentation.after_block', -1, *_AFTER_BLOCK),
    Field(
        'segmentation.output_stride',
        8,
        "Pixels between neighbours on the encoder's last map. Dilation takes the place of further strides.",
        choices=(1, 2, 4, 8, 16, 32),
    ),
    Field('segmentation.channels', 512, 'Channels of the head.', COUNT),
    Field('segmentation.image_size', 512, 'Side of a training view, pixels.', COUNT),
    Field('segmentation.test_size', 0, 'Longer side of a test image, pixels. 0: segmentation.image_size.', NATURAL),
    # Without labels.
    Field(
        'measures.images',
        10000,
        'Largest number of test images.',
        ('an integer >= 2', lambda value: value >= 2),
    ),
    Field('measures.neighbours', 10, 'Neighbours that are compared between two views of an image.', COUNT),
)


def is_layer(name: str) -> bool:
    """Whether a text can be the name of features. How many maps there are depends on the encoder."""
    return re.fullmatch(r'h|feature[1-9]\d{0,2}', name) is not None


def base_evaluation() -> ConfigDict:
    """Returns all fields with their defaults: the settings of the papers."""
    return defaults(FIELDS)


def _check_together(config: ConfigDict) -> list[str]:
    problems = []
    for field, allowed in (('protocols', PROTOCOLS), ('baselines', BASELINES), ('svm.layers', LAYERS)):
        chosen = config.svm.layers if field == 'svm.layers' else config[field]
        is_known = is_layer if field == 'svm.layers' else allowed.__contains__
        unknown = [str(member) for member in chosen if not is_known(member)]
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
    if SEGMENTATION in config.protocols:
        problems += _check_segmentation(config.segmentation)
    if config.protocols == (SEGMENTATION,):
        problems += _check_segmentation_alone(config)
    return problems


def _check_segmentation_alone(config: ConfigDict) -> list[str]:
    """Messages about settings of other protocols, where `segmentation` is the only one and would ignore them."""
    cures = {
        'datasets': 'it has its own data, segmentation.images or segmentation.tfds; leave datasets out',
        'image_size': 'set segmentation.image_size and segmentation.test_size',
        'crop_share': 'it sees whole test images; leave crop_share out',
        'batch_size': 'set segmentation.batch_size',
    }
    default = base_evaluation()
    problems = [
        f'{field}={config[field]!r}: does not apply to segmentation; {cure}'
        for field, cure in cures.items()
        if config[field] != default[field]
    ]
    if any(str(text).strip().isdecimal() for text in config.labels):
        problems.append(
            f'labels={config.labels!r}: masks have no number of labels per class; give segmentation shares of the '
            "training images, such as '10%'"
        )
    return problems


def _check_segmentation(settings: ConfigDict) -> list[str]:
    """Messages about the data of the protocol `segmentation`."""
    problems = []
    if bool(settings.tfds) == bool(settings.images) or bool(settings.images) != bool(settings.masks):
        problems.append(
            f'segmentation.images={settings.images!r}, segmentation.masks={settings.masks!r}, '
            f'segmentation.tfds={settings.tfds!r}: set images and masks, for example '
            '--config.segmentation.images=DIR/images/{split} --config.segmentation.masks=DIR/masks/{split}, or only '
            'tfds'
        )
    elif settings.tfds and settings.lists:
        problems.append(
            f'segmentation.lists={settings.lists!r}: lists name files of segmentation.images, and '
            f'segmentation.tfds={settings.tfds!r} has none; choose a part of a split by segmentation.train_split, such '
            "as 'train[:80%]', or give folders"
        )
    elif settings.images and '{split}' not in settings.images + settings.lists:
        problems.append(
            f'segmentation.images={settings.images!r}: both splits would have the same images; write {{split}} where '
            'the name of the split stands, or name their images by segmentation.lists'
        )
    if settings.epochs and settings.steps != base_evaluation().segmentation.steps:
        problems.append(
            f'segmentation.epochs={settings.epochs}, segmentation.steps={settings.steps}: set one of them; epochs '
            'alone go before the default of steps'
        )
    if settings.train_split == settings.test_split:
        problems.append(
            f'segmentation.train_split={settings.train_split!r}: must differ from segmentation.test_split, for example '
            "'train' and 'test'"
        )
    if settings.classes and settings.names and settings.classes != len(settings.names):
        problems.append(
            f'segmentation.classes={settings.classes}: segmentation.names has {len(settings.names)}; set one of them'
        )
    if len(settings.names) > _MOST_CLASSES:
        problems.append(
            f'segmentation.names has {len(settings.names)} names: must be at most {_MOST_CLASSES}, because masks have '
            '8 bits and one number is left for pixels without a class; join classes'
        )
    return problems


SCHEMA = Schema(FIELDS, _check_together)


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
