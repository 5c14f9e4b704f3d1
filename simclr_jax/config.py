"""The configuration: every field with its default, how it is read and overridden, and what may stand in it.

A configuration file holds `get_config(arg='') -> ConfigDict`: `base_config()` with what differs.
"""

import difflib
import importlib.util
import json
import math
import numbers
import pathlib
import re
import traceback
from collections.abc import Iterable

from ml_collections import ConfigDict

from simclr_jax.augment import policy
from simclr_jax.overrides import ConfigError, apply_overrides, flatten, unknown_field


def base_config() -> ConfigDict:
    """Every field and its default: SimCLRv2's pretraining of a ResNet-50 on ImageNet."""
    config = ConfigDict()
    config.seed = 0  # parameters, order of the images and augmentation follow from it
    config.batch_size = 4096  # images of the global batch; each makes len(augment.views) views
    config.train_epochs = 800.0  # passes over the training split
    config.train_steps = 0  # optimiser updates; 0: from train_epochs
    config.warmup_epochs = 40.0  # linear warm-up of the learning rate; not changed by train_steps
    config.init_from = ''  # work directory whose newest encoder and heads the run starts from

    config.data = data = ConfigDict()
    data.source = 'tfds'  # tfds | folder | arrays | digits | fake
    data.name = 'imagenet2012'  # tfds: name[:version or /config], as TensorFlow Datasets writes it
    data.path = ''  # folder: of images; arrays: .npz file ('{split}' stands for the split); tfds: data_dir
    data.split = 'train'  # images to pretrain on; with labels, also the bank of the kNN
    data.eval_split = 'validation'  # images to evaluate on; '': none (no online kNN)
    data.image_size = 224  # height and width of a view, pixels
    data.max_unreadable = 0.01  # share of files that may turn out to be no image before the run stops
    data.memory_limit_gb = 2.0  # tfds: encoded splits up to this size stay in memory, larger are streamed
    data.shuffle_buffer = 20000  # tfds, streamed: images among which the next one is drawn
    data.fake_images = 256  # fake: number of images of noise

    config.augment = augment = ConfigDict()
    augment.shared = ''  # operations applied once, before the views part (names as in `views`)
    augment.views = (policy.SIMCLR_VIEW, policy.SIMCLR_VIEW)  # a string of operations for each view
    for operation, parameters in policy.default_parameters().items():
        augment[operation] = ConfigDict(parameters)  # see simclr_jax/augment/policy.py

    config.model = model = ConfigDict()
    model.depth = 50  # 18 | 34 | 50 | 101 | 152 | 200
    model.width = 1.0  # multiplies every channel count; fractions are allowed
    model.stem = 'auto'  # auto (cifar up to 32 pixels) | cifar | imagenet
    model.sk_ratio = 0.0  # selective kernels, 0.0625 in SimCLRv2; 0: none
    model.se_ratio = 0.0  # squeeze-and-excitation, 0.25 as usual; 0: none
    model.dtype = 'float32'  # of the computation: float32 | bfloat16; parameters, statistics, loss: float32

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

    config.log_every_steps = 50  # one line and one row of metrics
    config.checkpoint_every_steps = 0  # 0: from checkpoint_every_epochs
    config.checkpoint_every_epochs = 10.0  # where checkpoint_every_steps is 0
    config.checkpoint_keep = 3  # newest checkpoints that stay
    return config.lock()


# What may change between two starts in one work directory: it does not change the parameters that come out.
FREE_FIELDS = (
    'knn.',
    'log_every_steps',
    'checkpoint_',
    'data.eval_split',
    'data.max_unreadable',
)


def load_config(spec: str, overrides: Iterable[tuple[str, str]] = ()) -> ConfigDict:
    """Reads a configuration file, applies overrides and validates the result.

    Args:
        spec: path of the file, then ':' and the argument of its get_config, if any: 'configs/cifar10.py:r50'.
        overrides: pairs (dotted field, text), as ('optimizer.learning_rate', '0.5').

    Returns:
        The locked configuration.

    Raises:
        ConfigError: with every problem of the file, the overrides and the values at once.
    """
    path, _, argument = spec.partition(':')
    if not pathlib.Path(path).is_file():
        raise ConfigError([f'--config={spec}: there is no file {path}; examples are in configs/'])
    config = _run_file(spec, path, argument)
    problems = apply_overrides(config, overrides)
    problems += check(config)
    if problems:
        raise ConfigError(problems)
    return config


def _run_file(spec: str, path: str, argument: str) -> ConfigDict:
    """What the file's get_config returns; a mistake in the file is told with its line."""
    module_spec = importlib.util.spec_from_file_location('simclr_config', path)
    if module_spec is None:
        raise ConfigError([f'--config={spec}: a configuration is a Python file, *.py'])
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        if not hasattr(module, 'get_config'):
            raise ConfigError([f'--config={spec}: the file defines no get_config(arg)'])
        config = module.get_config(argument)
    except ConfigError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == module_spec.origin]
        where = f', line {lines[-1]}' if lines else ''
        # A locked ConfigDict answers an unknown field with its whole contents.
        message = re.sub(r'( Other fields present: "\{.*\}")?(\\n|\n)', ' ', str(error))
        raise ConfigError([f'--config={spec}{where}: {type(error).__name__}: {message}']) from error
    if not isinstance(config, ConfigDict):
        raise ConfigError([f'--config={spec}: get_config returned {config!r:.40}; it must return a base_config()'])
    return config.lock()


def check(config: ConfigDict) -> list[str]:
    """Everything that is wrong with the values: one message a problem."""
    problems = _check_types(config)
    if problems:
        return problems
    problems += _check_ranges(config)
    problems += _check_choices(config)
    parameters = {name: config.augment[name].to_dict() for name in policy.OPERATIONS}
    found = policy.check(config.data.image_size, config.augment.shared, config.augment.views, parameters)
    problems += [f'augment.{problem}' for problem in found if not problem.startswith('size=')]
    if len(config.augment.views) < 2:
        problems.append(
            f'augment.views={config.augment.views}: contrast needs at least two views; '
            "for example ('crop flip', 'crop flip')"
        )
    return problems


def _check_types(config: ConfigDict) -> list[str]:
    """A configuration file may have put anything anywhere."""
    problems = []
    defaults, fields = flatten(base_config()), flatten(config)
    for name in fields:
        if name not in defaults:
            problems.append(f'{name}: {unknown_field(name, defaults)}')
    for name, default in defaults.items():
        if name not in fields:
            problems.append(f'{name} is missing; start from base_config()')
            continue
        value = fields[name]
        kind = numbers.Real if isinstance(default, float) else type(default)
        is_wrong_bool = isinstance(value, bool) and not isinstance(default, bool)
        if not isinstance(value, kind) or is_wrong_bool:
            problems.append(f'{name}={value!r}: must be of type {type(default).__name__}, like {default!r}')
    return problems


_COUNT = ('an integer >= 1', lambda value: value >= 1)
_NATURAL = ('an integer >= 0', lambda value: value >= 0)
_POSITIVE = ('a finite number > 0', lambda value: 0 < value < math.inf)
_AMOUNT = ('a finite number >= 0', lambda value: 0 <= value < math.inf)
_SHARE = ('a number in [0, 1]', lambda value: 0 <= value <= 1)
_BELOW_ONE = ('a number in [0, 1)', lambda value: 0 <= value < 1)

RANGES = {
    'seed': ('an integer in [0, 2^31)', lambda value: 0 <= value < 2**31),
    'batch_size': ('an integer >= 2: an image needs others to be told from', lambda value: value >= 2),
    'train_epochs': _POSITIVE,
    'train_steps': _NATURAL,
    'warmup_epochs': _AMOUNT,
    'data.image_size': ('an integer >= 4', lambda value: value >= 4),
    'data.max_unreadable': _SHARE,
    'data.memory_limit_gb': _AMOUNT,
    'data.shuffle_buffer': _COUNT,
    'data.fake_images': _COUNT,
    'model.width': _POSITIVE,
    'model.sk_ratio': _SHARE,
    'model.se_ratio': _SHARE,
    'head.layers': _COUNT,
    'head.out_dim': _COUNT,
    'head.hidden_dim': _NATURAL,
    'loss.temperature': _POSITIVE,
    'loss.margin': _AMOUNT,
    'loss_scale': _POSITIVE,
    'optimizer.learning_rate': _POSITIVE,
    'optimizer.weight_decay': _AMOUNT,
    'optimizer.momentum': _BELOW_ONE,
    'knn.every_epochs': _AMOUNT,
    'knn.k': ('integers >= 1', lambda value: bool(value) and all(type(k) is int and k >= 1 for k in value)),
    'knn.temperature': _POSITIVE,
    'knn.bank_images': _COUNT,
    'log_every_steps': _COUNT,
    'checkpoint_every_steps': _NATURAL,
    'checkpoint_every_epochs': _POSITIVE,
    'checkpoint_keep': _COUNT,
}

CHOICES = {
    'data.source': ('tfds', 'folder', 'arrays', 'digits', 'fake'),
    'model.depth': (18, 34, 50, 101, 152, 200),
    'model.stem': ('auto', 'cifar', 'imagenet'),
    'model.dtype': ('float32', 'bfloat16'),
    'head.kind': ('nonlinear', 'linear', 'none'),
    'loss.name': ('nt_xent', 'nt_logistic', 'margin_triplet'),
    'optimizer.name': ('lars', 'momentum', 'adam'),
    'optimizer.scaling': ('linear', 'sqrt', 'none'),
}


def _check_ranges(config: ConfigDict) -> list[str]:
    fields, defaults = flatten(config), flatten(base_config())
    return [
        f'{name}={fields[name]!r}: must be {rule}, for example {defaults[name]!r}'
        for name, (rule, holds) in RANGES.items()
        if not holds(fields[name])
    ]


def _check_choices(config: ConfigDict) -> list[str]:
    fields, problems = flatten(config), []
    for name, choices in CHOICES.items():
        if fields[name] not in choices:
            nearest = difflib.get_close_matches(str(fields[name]), map(str, choices), n=1)
            hint = f'; did you mean {nearest[0]}?' if nearest else ''
            problems.append(f'{name}={fields[name]!r}: must be one of {", ".join(map(str, choices))}{hint}')
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


def to_json(config: ConfigDict) -> str:
    """The text of `config.json`."""
    return json.dumps(config.to_dict(), indent=2) + '\n'


def from_json(text: str) -> ConfigDict:
    """The configuration that `to_json` wrote.

    Raises:
        ConfigError: no object, or fields of another version of the program.
    """

    def with_tuples(value):
        if isinstance(value, dict):
            return {key: with_tuples(item) for key, item in value.items()}
        return tuple(value) if isinstance(value, list) else value

    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise ConfigError([f'{text.strip():.40} is no object with the fields of a configuration'])
    config = ConfigDict(with_tuples(fields)).lock()
    problems = check(config)
    if problems:
        raise ConfigError(problems)
    return config


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
