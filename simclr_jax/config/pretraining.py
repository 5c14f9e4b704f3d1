"""The configuration of a pretraining: its fields, their defaults and the values that they accept.

A configuration file defines `get_config(arg='') -> ConfigDict`, which changes fields of a `base_config()`.
"""

from collections.abc import Iterable

from ml_collections import ConfigDict

from simclr_jax.augment import policy
from simclr_jax.config import schema
from simclr_jax.config.overrides import ConfigError, flatten
from simclr_jax.config.schema import AMOUNT, BELOW_ONE, COUNT, NATURAL, POSITIVE, SHARE, Schema, to_json

__all__ = ['ConfigError', 'base_config', 'check', 'differences', 'flatten', 'from_json', 'load_config', 'to_json']


def base_config() -> ConfigDict:
    """Returns all fields with their defaults: SimCLRv2's pretraining of a ResNet-50 on ImageNet (arXiv 2006.10029)."""
    config = ConfigDict()
    config.seed = 0  # Seed of the initial parameters, the order of the images and the augmentation.
    config.batch_size = 4096  # Images per global batch. Each image makes len(augment.views) views.
    config.train_epochs = 800.0  # Passes over the training split.
    config.train_steps = 0  # Optimizer updates. 0: computed from train_epochs.
    config.warmup_epochs = 40.0  # Epochs of linear learning rate warm-up. train_steps does not change them.
    config.microbatch = 0  # Images per pass through the network. The loss compares the whole batch. 0: one pass.
    config.sharding = 'replicated'  # Parameters and optimizer state: replicated on all devices | fsdp (divided).
    config.init_from = ''  # Work directory whose newest encoder and heads initialise this run. '': random.

    config.data = data = ConfigDict()
    data.source = 'tfds'  # Kind of data set: tfds | folder | arrays | digits | fake.
    data.name = 'imagenet2012'  # tfds: name in the form of TensorFlow Datasets, NAME[:VERSION] or NAME/CONFIG.
    # folder: directory of images. arrays: .npz file, where '{split}' stands for the split. tfds: data_dir.
    data.path = ''  # Place of the data.
    data.split = 'train'  # Split for the pretraining. Its labelled images are also the bank of the online kNN.
    data.eval_split = 'validation'  # Split for the online kNN. '': no online kNN.
    data.image_size = 224  # Height and width of a view in pixels.
    data.feed = 'auto'  # Place of the augmentation: host | hybrid | resident (see data/feed.py) | auto (fastest).
    data.max_unreadable = 0.01  # Largest share of unreadable files. The run stops above it.
    data.memory_limit_gb = 2.0  # tfds: encoded splits up to this size are held in memory. Larger ones are streamed.
    data.shuffle_buffer = 20000  # tfds, streamed: images in the shuffle buffer, over all processes.
    data.lanes = 64  # tfds, streamed: parts of the split that are read in parallel, over all processes.
    data.threads = 0  # Threads of the input pipeline, in its own pool. 0: TensorFlow's pool, one thread per core.
    data.parallel_calls = 0  # Images that are decoded and augmented at the same time. 0: tuned during the run.
    data.prefetch = 2  # Batches that are prepared in advance. 0: tuned during the run.
    data.fake_images = 256  # fake: number of noise images.

    config.augment = augment = ConfigDict()
    augment.shared = ''  # Operations that all views of an image share, applied first. Names as in `views`.
    augment.views = (policy.SIMCLR_VIEW, policy.SIMCLR_VIEW)  # One string of operations per view.
    for operation, parameters in policy.default_parameters().items():
        augment[operation] = ConfigDict(parameters)  # Parameters of each operation, see augment/operations.py.

    config.model = model = ConfigDict()
    model.depth = 50  # ResNet: 18 | 34 | 50 | 101 | 152 | 200. For tests: 6 (two stages of one block) | 10 (four).
    model.width = 1.0  # Factor on all channel counts, also fractions.
    model.stem = 'auto'  # First layers: cifar | imagenet | auto (cifar for image_size <= 32).
    model.sk_ratio = 0.0  # Ratio of the selective kernels, 0.0625 in SimCLRv2. 0: none.
    model.se_ratio = 0.0  # Ratio of squeeze-and-excitation, usually 0.25. 0: none.
    model.dtype = 'float32'  # Type of the computation: float32 | bfloat16. State and loss are always float32.
    model.remat = ()  # Stages (1 to 4) that the backward pass recomputes. This saves memory and costs time.

    config.head = head = ConfigDict()
    head.kind = 'nonlinear'  # Projection head: nonlinear | linear | none.
    head.layers = 3  # nonlinear: number of layers, 2 in SimCLR and 3 in SimCLRv2.
    head.out_dim = 128  # Width of the projection.
    head.hidden_dim = 0  # nonlinear: width of the middle layers. 0: width of the representation.
    config.probe = True  # Whether labelled images also train a linear classifier on stop_gradient(h).

    config.loss = loss = ConfigDict()
    loss.name = 'nt_xent'  # nt_xent | nt_logistic | margin_triplet.
    loss.temperature = 0.1  # nt_xent, nt_logistic: temperature.
    loss.margin = 0.4  # margin_triplet: margin.
    loss.normalize = True  # Whether the loss compares l2-normalised projections (cosine) or the raw ones.
    loss.semi_hard = False  # nt_logistic, margin_triplet: whether only semi-hard negatives count.
    loss.block_size = 0  # nt_xent: views per block of logits in a device's memory, for example 512. 0: one block.
    config.loss_scale = 2.0  # Factor on the paper's mean. The reference code trains with 2.

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = 'lars'  # lars | momentum (Nesterov) | adam.
    optimizer.learning_rate = 0.1  # Learning rate before the scaling with the batch size.
    optimizer.scaling = 'sqrt'  # Factor for batch size B: linear (B / 256) | sqrt (sqrt(B)) | none.
    optimizer.weight_decay = 1e-4  # lars: on kernels. momentum, adam: on all parameters except batch norm.
    optimizer.momentum = 0.9  # lars, momentum: momentum.

    config.knn = knn = ConfigDict()
    knn.every_epochs = 10.0  # Epochs between online kNN evaluations, for labelled data with an eval_split. 0: none.
    knn.k = (20,)  # Numbers of neighbours that vote. Each gives one accuracy.
    knn.temperature = 0.07  # Temperature of the weights of the votes, exp(similarity / temperature).
    knn.bank_images = 50000  # Images in the bank: the first ones of the training split.

    config.log_every_steps = 50  # Steps between lines of the log and rows of metrics.
    config.checkpoint_every_steps = 0  # Steps between checkpoints. 0: computed from checkpoint_every_epochs.
    config.checkpoint_every_epochs = 10.0  # Epochs between checkpoints, if checkpoint_every_steps is 0.
    config.checkpoint_keep = 3  # Number of newest checkpoints that are kept.
    return config.lock()


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
)


RANGES = {
    'seed': ('an integer in [0, 2^31)', lambda value: 0 <= value < 2**31),
    'batch_size': ('an integer >= 2, because the loss compares different images', lambda value: value >= 2),
    'microbatch': NATURAL,
    'train_epochs': POSITIVE,
    'train_steps': NATURAL,
    'warmup_epochs': AMOUNT,
    'data.image_size': ('an integer >= 4', lambda value: value >= 4),
    'data.max_unreadable': SHARE,
    'data.memory_limit_gb': AMOUNT,
    'data.shuffle_buffer': COUNT,
    'data.lanes': COUNT,
    'data.threads': NATURAL,
    'data.parallel_calls': NATURAL,
    'data.prefetch': NATURAL,
    'data.fake_images': COUNT,
    'model.width': POSITIVE,
    'model.sk_ratio': SHARE,
    'model.se_ratio': SHARE,
    'model.remat': ('a tuple of stages from 1 to 4', lambda value: set(value) <= {1, 2, 3, 4}),
    'head.layers': COUNT,
    'head.out_dim': COUNT,
    'head.hidden_dim': NATURAL,
    'loss.temperature': POSITIVE,
    'loss.margin': AMOUNT,
    'loss.block_size': NATURAL,
    'loss_scale': POSITIVE,
    'optimizer.learning_rate': POSITIVE,
    'optimizer.weight_decay': AMOUNT,
    'optimizer.momentum': BELOW_ONE,
    'knn.every_epochs': AMOUNT,
    'knn.k': ('integers >= 1', lambda value: bool(value) and all(type(k) is int and k >= 1 for k in value)),
    'knn.temperature': POSITIVE,
    'knn.bank_images': COUNT,
    'log_every_steps': COUNT,
    'checkpoint_every_steps': NATURAL,
    'checkpoint_every_epochs': POSITIVE,
    'checkpoint_keep': COUNT,
}

CHOICES = {
    'sharding': ('replicated', 'fsdp'),
    'data.feed': ('auto', 'host', 'hybrid', 'resident'),
    'data.source': ('tfds', 'folder', 'arrays', 'digits', 'fake'),
    'model.depth': (6, 10, 18, 34, 50, 101, 152, 200),
    'model.stem': ('auto', 'cifar', 'imagenet'),
    'model.dtype': ('float32', 'bfloat16'),
    'head.kind': ('nonlinear', 'linear', 'none'),
    'loss.name': ('nt_xent', 'nt_logistic', 'margin_triplet'),
    'optimizer.name': ('lars', 'momentum', 'adam'),
    'optimizer.scaling': ('linear', 'sqrt', 'none'),
}


def _check_together(config: ConfigDict) -> list[str]:
    parameters = {name: config.augment[name].to_dict() for name in policy.OPERATIONS}
    found = policy.check(config.data.image_size, config.augment.shared, config.augment.views, parameters)
    problems = [f'augment.{problem}' for problem in found if not problem.startswith('size=')]
    if len(config.augment.views) < 2:
        problems.append(
            f'augment.views={config.augment.views}: the loss compares at least two views, '
            "for example ('crop flip', 'crop flip')"
        )
    if config.microbatch and config.batch_size % config.microbatch:
        divisors = [size for size in range(1, config.batch_size) if config.batch_size % size == 0]
        nearest = sorted(divisors, key=lambda size: abs(size - config.microbatch))[:2]
        problems.append(
            f'microbatch={config.microbatch}: must divide batch_size={config.batch_size}; nearest: '
            + ', '.join(map(str, sorted(nearest)))
        )
    if config.loss.block_size and config.loss.name != 'nt_xent':
        problems.append(
            f'loss.block_size={config.loss.block_size}: nt_xent alone is computed in blocks; '
            f'set it to 0 for {config.loss.name}'
        )
    if config.data.source in ('folder', 'arrays') and not config.data.path:
        problems.append(f"data.path='': source {config.data.source} needs it; set --config.data.path=PATH")
    if config.data.source == 'tfds' and not config.data.name:
        problems.append("data.name='': source tfds needs it; set it, for example --config.data.name=cifar10")
    if config.model.sk_ratio > 0 and config.model.se_ratio > 0:
        problems.append(
            f'model.sk_ratio={config.model.sk_ratio}, model.se_ratio={config.model.se_ratio}: '
            'at most one may be above 0; set the other to 0'
        )
    if config.model.sk_ratio > 0 and config.model.depth < 50:
        problems.append(
            f'model.sk_ratio={config.model.sk_ratio}: needs bottleneck blocks; set model.depth >= 50, or sk_ratio to 0'
        )
    return problems


SCHEMA = Schema(base_config, RANGES, CHOICES, _check_together, retired=('steps_per_dispatch',))


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
    free = FREE_FIELDS if wanted.data.source in ('folder', 'arrays') else (*FREE_FIELDS, 'data.path')
    return [
        f'{name}: {before[name]!r} -> {after[name]!r}'
        for name in before
        if before[name] != after[name] and not name.startswith(free)
    ]
