"""The configuration of a pretraining: every field with its default, and what may stand in it.

A configuration file holds `get_config(arg='') -> ConfigDict`: `base_config()` with what differs.
"""

from collections.abc import Iterable

from ml_collections import ConfigDict

from simclr_jax.augment import policy
from simclr_jax.config import schema
from simclr_jax.config.overrides import ConfigError, flatten
from simclr_jax.config.schema import AMOUNT, BELOW_ONE, COUNT, NATURAL, POSITIVE, SHARE, Schema, to_json

__all__ = ['ConfigError', 'base_config', 'check', 'differences', 'flatten', 'from_json', 'load_config', 'to_json']


def base_config() -> ConfigDict:
    """Every field and its default: SimCLRv2's pretraining of a ResNet-50 on ImageNet."""
    config = ConfigDict()
    config.seed = 0  # parameters, order of the images and augmentation follow from it
    config.batch_size = 4096  # images of the global batch; each makes len(augment.views) views
    config.train_epochs = 800.0  # passes over the training split
    config.train_steps = 0  # optimiser updates; 0: from train_epochs
    config.warmup_epochs = 40.0  # linear warm-up of the learning rate; not changed by train_steps
    config.microbatch = 0  # images that go through the network at a time, the loss being the batch's; 0: all of them
    config.sharding = 'replicated'  # of parameters and optimiser over the devices: replicated | fsdp
    config.init_from = ''  # work directory whose newest encoder and heads the run starts from

    config.data = data = ConfigDict()
    data.source = 'tfds'  # tfds | folder | arrays | digits | fake
    data.name = 'imagenet2012'  # tfds: name[:version or /config], as TensorFlow Datasets writes it
    data.path = ''  # folder: of images; arrays: .npz file ('{split}' stands for the split); tfds: data_dir
    data.split = 'train'  # images to pretrain on; with labels, also the bank of the kNN
    data.eval_split = 'validation'  # images to evaluate on; '': none (no online kNN)
    data.image_size = 224  # height and width of a view, pixels
    data.feed = 'auto'  # host | hybrid | resident: where images become views, see simclr_jax/feeding.py; auto: fastest
    data.max_unreadable = 0.01  # share of files that may turn out to be no image before the run stops
    data.memory_limit_gb = 2.0  # tfds: encoded splits up to this size stay in memory, larger are streamed
    data.shuffle_buffer = 20000  # tfds, streamed: images among which the next one is drawn, by all processes together
    data.lanes = 64  # tfds, streamed: parts of the split that are read side by side, by all processes together
    data.threads = 0  # of the input pipeline, in a pool of its own; 0: TensorFlow's, one a core
    data.parallel_calls = 0  # images decoded and augmented at the same time; 0: tuned while it runs
    data.prefetch = 2  # batches that are ready before they are asked for; 0: tuned while it runs
    data.fake_images = 256  # fake: number of images of noise

    config.augment = augment = ConfigDict()
    augment.shared = ''  # operations applied once, before the views part (names as in `views`)
    augment.views = (policy.SIMCLR_VIEW, policy.SIMCLR_VIEW)  # a string of operations for each view
    for operation, parameters in policy.default_parameters().items():
        augment[operation] = ConfigDict(parameters)  # see simclr_jax/augment/policy.py

    config.model = model = ConfigDict()
    model.depth = 50  # 18 | 34 | 50 | 101 | 152 | 200; for tests 6 (two stages of one block) | 10 (four)
    model.width = 1.0  # multiplies every channel count; fractions are allowed
    model.stem = 'auto'  # auto (cifar up to 32 pixels) | cifar | imagenet
    model.sk_ratio = 0.0  # selective kernels, 0.0625 in SimCLRv2; 0: none
    model.se_ratio = 0.0  # squeeze-and-excitation, 0.25 as usual; 0: none
    model.dtype = 'float32'  # of the computation: float32 | bfloat16; parameters, statistics, loss: float32

    model.remat = ()  # stages, of 1 to 4, that the backward pass computes anew, which saves memory

    config.head = head = ConfigDict()
    head.kind = 'nonlinear'  # nonlinear | linear | none
    head.layers = 3  # of the nonlinear head: 2 in SimCLR, 3 in SimCLRv2
    head.out_dim = 128  # width of the projection
    head.hidden_dim = 0  # of the nonlinear head's middle layers; 0: the representation's
    config.probe = True  # train a linear classifier on stop_gradient(h) beside it, where there are labels

    config.loss = loss = ConfigDict()
    loss.name = 'nt_xent'  # nt_xent | nt_logistic | margin_triplet
    loss.temperature = 0.1  # of nt_xent and nt_logistic
    loss.margin = 0.4  # of margin_triplet
    loss.normalize = True  # compare l2-normalised projections (cosine) or the raw ones
    loss.semi_hard = False  # nt_logistic and margin_triplet: semi-hard negatives only
    loss.block_size = 0  # nt_xent: views whose logits a device has in memory at a time, say 512; 0: all of its own
    config.loss_scale = 2.0  # multiplies the paper's mean; 2 is what the reference code trains with

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = 'lars'  # lars | momentum (Nesterov) | adam
    optimizer.learning_rate = 0.1  # before scaling with the batch
    optimizer.scaling = 'sqrt'  # linear (times B / 256) | sqrt (times sqrt(B)) | none
    optimizer.weight_decay = 1e-4  # lars: kernels; momentum, adam: all but batch norm
    optimizer.momentum = 0.9  # of lars and momentum

    config.knn = knn = ConfigDict()
    knn.every_epochs = 10.0  # online kNN, where there are labels and an eval_split; 0: never
    knn.k = (20,)  # neighbours that vote
    knn.temperature = 0.07  # of the votes' weights exp(similarity / temperature)
    knn.bank_images = 50000  # images of the training split used as bank by the online kNN, the first so many

    config.steps_per_dispatch = 0  # data.feed=resident: updates that the devices make on one order; 0: up to 10
    config.log_every_steps = 50  # one line and one row of metrics
    config.checkpoint_every_steps = 0  # 0: from checkpoint_every_epochs
    config.checkpoint_every_epochs = 10.0  # where checkpoint_every_steps is 0
    config.checkpoint_keep = 3  # newest checkpoints that stay
    return config.lock()


# What may change between two starts in one work directory: it does not change the parameters that come out, but for
# rounding.
FREE_FIELDS = (
    'sharding',
    'model.remat',
    'loss.block_size',
    'knn.',
    'steps_per_dispatch',
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
    'batch_size': ('an integer >= 2: an image needs others to be told from', lambda value: value >= 2),
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
    'model.remat': ('stages out of 1, 2, 3, 4', lambda value: set(value) <= {1, 2, 3, 4}),
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
    'steps_per_dispatch': NATURAL,
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
            f'augment.views={config.augment.views}: contrast needs at least two views; '
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
            f'loss.block_size={config.loss.block_size}: of the losses nt_xent alone is computed in blocks; '
            f'set it to 0 for {config.loss.name}'
        )
    if config.data.source in ('folder', 'arrays') and not config.data.path:
        problems.append(f"data.path='': source {config.data.source} needs it; --config.data.path=DIRECTORY")
    if config.data.source == 'tfds' and not config.data.name:
        problems.append("data.name='': source tfds needs it; for example --config.data.name=cifar10")
    if config.model.sk_ratio > 0 and config.model.se_ratio > 0:
        problems.append(
            f'model.sk_ratio={config.model.sk_ratio}, model.se_ratio={config.model.se_ratio}: '
            'one at most may be above 0'
        )
    if config.model.sk_ratio > 0 and config.model.depth < 50:
        problems.append(f'model.sk_ratio={config.model.sk_ratio}: needs bottleneck blocks, model.depth >= 50')
    return problems


SCHEMA = Schema(base_config, RANGES, CHOICES, _check_together)


def load_config(spec: str, overrides: Iterable[tuple[str, str]] = ()) -> ConfigDict:
    """Reads a configuration of a pretraining, applies overrides and validates it; see `schema.load`."""
    return schema.load(SCHEMA, spec, overrides)


def check(config: ConfigDict) -> list[str]:
    """Everything that is wrong with the values: one message a problem."""
    return schema.check(SCHEMA, config)


def from_json(text: str) -> ConfigDict:
    """The configuration whose text `to_json` made; see `schema.from_json`."""
    return schema.from_json(SCHEMA, text)


def differences(saved: ConfigDict, wanted: ConfigDict) -> list[str]:
    """The fields in which two configurations would give other parameters: 'field: saved -> wanted'."""
    before, after = flatten(saved), flatten(wanted)
    # With TFDS the path is where a named data set lies; otherwise it is the only name that the images have.
    free = FREE_FIELDS if wanted.data.source in ('folder', 'arrays') else (*FREE_FIELDS, 'data.path')
    return [
        f'{name}: {before[name]!r} -> {after[name]!r}'
        for name in before
        if before[name] != after[name] and not name.startswith(free)
    ]
