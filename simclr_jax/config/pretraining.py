"""The configuration of a pretraining: its fields, their defaults and the values that they accept.

A configuration file defines `get_config(arg='') -> ConfigDict`, which changes fields of a `base_config()`.
"""

import math
from collections.abc import Iterable

from ml_collections import ConfigDict

from simclr_jax.augment import policy
from simclr_jax.config import schema
from simclr_jax.config.encoders import MODEL_FIELDS, check_encoders
from simclr_jax.config.fields import (
    AMOUNT,
    BELOW_ONE,
    COUNT,
    COUNTS,
    MAX_IMAGE_PIXELS,
    NATURAL,
    POSITIVE,
    SEED,
    SHARE,
    Field,
    defaults,
)
from simclr_jax.config.overrides import flatten
from simclr_jax.config.paths import ConfigError
from simclr_jax.config.schema import Schema, to_json
from simclr_jax.config.students import MEMORY_FIELDS, TASK, TEACHER_FIELDS, check_students

__all__ = ['ConfigError', 'base_config', 'check', 'differences', 'flatten', 'from_json', 'load_config', 'to_json']

_SEVERAL_IMAGES = ('an integer >= 2, because the loss compares different images', lambda value: value >= 2)
_SIDE = ('an integer >= 4', lambda value: value >= 4)

FIELDS = (
    TASK,
    Field('seed', 0, 'Seed of the initial parameters, the order of the images and the augmentation.', SEED),
    Field('batch_size', 4096, 'Images per global batch. Each image makes len(augment.views) views.', _SEVERAL_IMAGES),
    Field('train_epochs', 800.0, 'Passes over the training split.', POSITIVE),
    Field('train_steps', 0, 'Optimizer updates. 0: computed from train_epochs.', NATURAL),
    Field('warmup_epochs', 40.0, 'Epochs of linear learning rate warm-up. train_steps does not change them.', AMOUNT),
    Field(
        'microbatch',
        0,
        'Images per pass through the network. The loss compares the whole batch. 0: one pass.',
        NATURAL,
    ),
    Field(
        'sharding',
        'replicated',
        'Parameters and optimizer state: a copy on each device, or divided among the devices (fsdp).',
        choices=('replicated', 'fsdp'),
    ),
    Field(
        'init_from',
        '',
        "Work directory whose newest encoder and heads initialise this run. '': random parameters.",
        is_path=True,
    ),
    # Data.
    Field('data.source', 'tfds', 'Kind of data set.', choices=('tfds', 'folder', 'packed', 'arrays', 'digits', 'fake')),
    Field(
        'data.name',
        'imagenet2012',
        'tfds: name in the form of TensorFlow Datasets, NAME[:VERSION] or NAME/CONFIG.',
    ),
    Field(
        'data.path',
        '',
        'Place of the data. folder: directory of images. packed: directory that simclr pack wrote. '
        "arrays: .npz file, where '{split}' stands for the split. "
        "tfds: directory of the prepared data sets, '' for TFDS_DATA_DIR or ~/tensorflow_datasets.",
        is_path=True,
    ),
    Field(
        'data.split',
        'train',
        'Split for the pretraining. Its labelled images are also the bank of the online kNN. '
        "folder: name of the sub-directory, '' for the directory itself.",
    ),
    Field('data.eval_split', 'validation', "Split for the online kNN. '': no online kNN."),
    Field('data.image_size', 224, 'Height and width of a view in pixels.', _SIDE),
    Field(
        'data.feed',
        'auto',
        'Place of the augmentation: the CPUs (host), both (hybrid) or the devices (decoded; resident: images of one '
        'size, in the memory of the devices). auto: the fastest.',
        choices=('auto', 'host', 'hybrid', 'decoded', 'resident'),
    ),
    Field(
        'data.canvas',
        0,
        'decoded: longest side of an image on its way to the devices, in pixels. Larger images are decoded smaller. '
        '0: 2.25 times image_size, rounded up to a multiple of 64.',
        ('0, or pixels from 16 to 4096', lambda value: value == 0 or 16 <= value <= 4096),
    ),
    Field('data.max_unreadable', 0.01, 'Largest share of unreadable images. The run stops above it.', SHARE),
    Field(
        'data.max_image_pixels',
        MAX_IMAGE_PIXELS,
        'Largest number of pixels of an encoded image, by its header. A larger one counts as unreadable.',
        COUNT,
    ),
    Field(
        'data.memory_limit_gb',
        2.0,
        'tfds: encoded splits up to this size are held in memory. Larger ones are streamed. '
        'decoded: images of one size up to this are held in memory. '
        'arrays: an .npz that unpacks to more, and to more than its own size, is refused.',
        AMOUNT,
    ),
    Field(
        'data.shuffle_buffer',
        20000,
        'tfds and packed, streamed: images in the shuffle buffer, over all processes.',
        COUNT,
    ),
    Field(
        'data.lanes',
        64,
        'tfds and packed, streamed: parts of the split that are read in parallel, over all processes.',
        COUNT,
    ),
    Field(
        'data.threads',
        0,
        'Threads of the input pipeline, in its own pool. 0: one thread per core.',
        NATURAL,
    ),
    Field(
        'data.parallel_calls',
        0,
        'host, hybrid: images that are decoded and augmented at the same time. 0: tuned during the run.',
        NATURAL,
    ),
    Field('data.prefetch', 2, 'Batches that are prepared in advance. 0: tuned during the run (decoded: 2).', NATURAL),
    Field('data.fake_images', 256, 'fake: number of noise images.', COUNT),
    # Augmentation.
    Field(
        'augment.shared',
        '',
        'Operations that all views of an image share, applied first. Names as in augment.views.',
    ),
    Field(
        'augment.views',
        (policy.SIMCLR_VIEW, policy.SIMCLR_VIEW),
        f'One text of operations per view, with spaces between: {", ".join(policy.OPERATIONS)}.',
    ),
    *(
        Field(f'augment.{operation}.{name}', default, meaning, rule)
        for operation, parameters in policy.declared_parameters().items()
        for name, (default, meaning, rule) in parameters.items()
    ),
    # Network.
    *MODEL_FIELDS,
    Field('head.kind', 'nonlinear', 'Projection head.', choices=('nonlinear', 'linear', 'none')),
    Field('head.layers', 3, 'nonlinear: number of layers, 2 in SimCLR and 3 in SimCLRv2.', COUNT),
    Field('head.out_dim', 128, 'Width of the projection.', COUNT),
    Field('head.hidden_dim', 0, 'nonlinear: width of the middle layers. 0: width of the representation.', NATURAL),
    Field(
        'head.batch_norm',
        True,
        'Whether each layer of the head has a batch norm. Without, it has a bias, as in MoCo and DisCo.',
    ),
    Field('probe', True, 'Whether labelled images also train a linear classifier on stop_gradient(h).'),
    # Loss and optimizer.
    Field(
        'loss.name', 'nt_xent', 'Contrastive loss.', choices=('nt_xent', 'nt_logistic', 'margin_triplet', 'info_nce')
    ),
    Field('loss.temperature', 0.1, 'nt_xent, nt_logistic, info_nce: temperature.', POSITIVE),
    Field('loss.margin', 0.4, 'margin_triplet: margin.', AMOUNT),
    Field('loss.normalize', True, 'Whether the loss compares l2-normalised projections (cosine) or the raw ones.'),
    Field('loss.semi_hard', False, 'nt_logistic, margin_triplet: whether only semi-hard negatives count.'),
    Field(
        'loss.block_size',
        0,
        "nt_xent: views per block of logits in a device's memory, for example 512. 0: one block.",
        NATURAL,
    ),
    *MEMORY_FIELDS,
    Field(
        'loss_scale',
        2.0,
        "Factor on the paper's mean. The reference code trains with 2. disco: 0 leaves it out.",
        AMOUNT,
    ),
    *TEACHER_FIELDS,
    Field(
        'optimizer.name',
        'lars',
        'Optimizer. momentum is that of Nesterov, sgd the plain one of PyTorch.',
        choices=('lars', 'momentum', 'sgd', 'adam'),
    ),
    Field('optimizer.learning_rate', 0.1, 'Learning rate before the scaling with the batch size.', POSITIVE),
    Field(
        'optimizer.scaling',
        'sqrt',
        'Factor on the learning rate for batch size B: B / 256 (linear), sqrt(B) (sqrt) or 1 (none).',
        choices=('linear', 'sqrt', 'none'),
    ),
    Field(
        'optimizer.weight_decay',
        1e-4,
        'Weight decay. lars: on kernels. momentum, adam: on all parameters except batch norm. sgd: on all.',
        AMOUNT,
    ),
    Field('optimizer.momentum', 0.9, 'lars, momentum, sgd: momentum.', BELOW_ONE),
    # During the run.
    Field(
        'knn.every_epochs',
        10.0,
        'Epochs between online kNN evaluations, for labelled data with an eval_split. 0: none.',
        AMOUNT,
    ),
    Field('knn.k', (20,), 'Numbers of neighbours that vote. Each gives one accuracy.', COUNTS),
    Field('knn.temperature', 0.07, 'Temperature of the weights of the votes, exp(similarity / temperature).', POSITIVE),
    Field('knn.bank_images', 50000, 'Images in the bank: the first ones of the training split.', COUNT),
    Field('log_every_steps', 50, 'Steps between lines of the log and rows of metrics.', COUNT),
    Field('checkpoint_every_steps', 0, 'Steps between checkpoints. 0: computed from checkpoint_every_epochs.', NATURAL),
    Field('checkpoint_every_epochs', 10.0, 'Epochs between checkpoints, if checkpoint_every_steps is 0.', POSITIVE),
    Field('checkpoint_every_minutes', 10.0, 'Minutes after which a checkpoint is due even so. 0: never.', AMOUNT),
    Field('checkpoint_keep', 3, 'Number of newest checkpoints that are kept.', COUNT),
)


def base_config() -> ConfigDict:
    """Returns all fields with their defaults: SimCLRv2's pretraining of a ResNet-50 on ImageNet (arXiv 2006.10029)."""
    return defaults(FIELDS)


# Fields that may change between two starts in one work directory. They do not change the resulting parameters, except
# for rounding. A name that ends in '.' or '_' stands for all fields that begin with it.
FREE_FIELDS = (
    'sharding',
    'model.remat',
    'loss.block_size',
    'knn.',
    'log_every_steps',
    'checkpoint_',
    'data.eval_split',
    'data.max_unreadable',
    'data.threads',
    'data.parallel_calls',
    'data.prefetch',
    # The checksum in the checkpoints says whether it is the same teacher.
    'teacher.path',
)


def _check_together(config: ConfigDict) -> list[str]:
    # Each field's own rule has checked the size and the parameters of the operations.
    found = policy.check(policy.SMALL_IMAGE_SIZE, config.augment.shared, config.augment.views, {})
    problems = [f'augment.{problem}' for problem in found]
    problems += check_students(config)
    if config.microbatch and config.batch_size % config.microbatch:
        small = [size for size in range(1, math.isqrt(abs(config.batch_size)) + 1) if config.batch_size % size == 0]
        divisors = {*small, *(config.batch_size // size for size in small)} - {config.batch_size}
        nearest = sorted(divisors, key=lambda size: (abs(size - config.microbatch), size))[:2]
        problems.append(
            f'microbatch={config.microbatch}: must divide batch_size={config.batch_size}; nearest: '
            + ', '.join(map(str, sorted(nearest)))
        )
    if config.loss.block_size and config.loss.name != 'nt_xent':
        problems.append(
            f'loss.block_size={config.loss.block_size}: nt_xent alone is computed in blocks; '
            f'set it to 0 for {config.loss.name}'
        )
    if config.data.source in ('folder', 'packed', 'arrays') and not config.data.path:
        problems.append(f"data.path='': source {config.data.source} needs it; set --config.data.path=PATH")
    if config.data.source == 'tfds' and not config.data.name:
        problems.append("data.name='': source tfds needs it; set it, for example --config.data.name=cifar10")
    return problems + check_encoders(config.model)


SCHEMA = Schema(FIELDS, _check_together, retired=('steps_per_dispatch',))


def load_config(spec: str, overrides: Iterable[tuple[str, str]] = ()) -> ConfigDict:
    """Reads the configuration of a pretraining from a file, applies overrides and validates the result.

    Args:
        spec: Path of a configuration file, then ':' and the argument of its `get_config` if it needs one.
        overrides: Pairs (dotted field, text), for example ('loss.temperature', '0.5').

    Returns:
        The locked configuration.

    Raises:
        ConfigError: The file, an override or a value is wrong. The error lists all problems at once.

    Example:
        >>> config = load_config('configs/digits.py', [('loss.temperature', '0.2')])
        >>> config.loss.temperature
        0.2
    """
    return schema.load(SCHEMA, spec, overrides)


def check(config: ConfigDict) -> list[str]:
    """Returns one message for each wrong value, and an empty list for a valid configuration."""
    return schema.check(SCHEMA, config)


def from_json(text: str) -> ConfigDict:
    """Reads the text that `to_json` wrote. See `schema.from_json`."""
    return schema.from_json(SCHEMA, text)


def differences(saved: ConfigDict, wanted: ConfigDict) -> list[str]:
    """Returns the fields in which two configurations would train other parameters.

    Args:
        saved: Configuration in the work directory.
        wanted: Configuration of the new start.

    Returns:
        One text per field, 'field: saved -> wanted'. Fields that do not change the parameters are left out.
    """
    before, after = flatten(saved), flatten(wanted)
    # With TFDS the path only says where the named data set lies. Otherwise the path alone identifies the images.
    free = FREE_FIELDS if wanted.data.source in ('folder', 'packed', 'arrays') else (*FREE_FIELDS, 'data.path')
    return [
        f'{name}: {before[name]!r} -> {after[name]!r}'
        for name in before
        if before[name] != after[name] and not name.startswith(free)
    ]
