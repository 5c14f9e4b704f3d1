"""The story of `simclr convert`: find out what a file is, read it, compare, and write a work directory."""

import math
import os
from collections.abc import Callable

from etils import epath

from simclr_jax.config import ConfigError
from simclr_jax.config.storage import check_reachable
from simclr_jax.data.spec import needs_tensorflow
from simclr_jax.interop.imported import TOLERANCE, Imported
from simclr_jax.interop.places import check_new, new_directory
from simclr_jax.interop.torch_files import PICKLES, SAFETENSORS
from simclr_jax.networks import make_encoder

# Mean and deviation of each colour, by the value of --normalize.
NORMALIZATIONS = {
    'none': ((), ()),
    'imagenet': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def convert(
    source: str,
    out: str,
    *,
    weights: str = '',
    normalize: str = '',
    pool: str = '',
    stem_padding: int | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, float]:
    """Converts an encoder of another program into a work directory.

    Args:
        source: A checkpoint of TensorFlow 1 (prefix, file or directory), the directory of a SavedModel, or a file of
            PyTorch, see `torch_files.read_state_dict`.
        out: Work directory to make, local or gs://.
        weights: 'base' or 'ema' where the file has both. '': those that are there.
        normalize: How the images of a PyTorch network were normalised: a name in NORMALIZATIONS, or three means and
            three deviations with commas between them. '': what the file says.
        pool: Padding of a PyTorch network's max pooling, 'symmetric' or 'same'. '': what the file says, or else
            'symmetric'.
        stem_padding: Padding of a PyTorch network's first convolution of 3x3, 1 or 2. None: what the file says.
        say: Function that receives lines for the user.

    Returns:
        For each output, the largest difference from the other program, as a share of its largest entry.

    Raises:
        ConfigError, DataError: The file cannot be read, or does not fit.
        CheckError: The converted network computes something else. Nothing is written.
    """
    check_reachable(source)
    place = check_new(out)
    found = _read(source, weights, normalize, pool, stem_padding)
    ratio = f'sk_ratio {found.config.model.sk_ratio}, ' if found.config.model.encoder == 'resnet' else ''
    say(
        f'{found.origin}, step {found.step:,}: {make_encoder(found.config).title}, {ratio}'
        f'{found.config.head.kind} head, {found.num_classes or "no"} classes.'
    )
    for note in found.notes:
        say(note)
    say(f'Computing the same images with {found.computed_by}.')
    differences = found.check()
    for name, difference in differences.items():
        say(f'{name}: largest difference {difference:.1e} of the largest entry (allowed: {TOLERANCE:.0e})')
    with new_directory(place) as made:
        found.write(str(made))
    return differences


def _read(source: str, weights: str, normalize: str, pool: str, stem_padding: int | None) -> Imported:
    if _is_of_pytorch(source):
        from simclr_jax.interop.torch_in import read_torch

        inputs = {'normalize': _normalization(normalize), 'pool': pool, 'stem_padding': stem_padding}
        return read_torch(source, weights=weights, **inputs)
    options = {'normalize': normalize, 'pool': pool, 'stem-padding': stem_padding}
    given = [f'--{name}={value}' for name, value in options.items() if value]
    if given:
        raise ConfigError([f'{", ".join(given)}: {source} is no file of PyTorch; leave this out'])
    with needs_tensorflow("simclr convert of TensorFlow's files", 'convert on another machine'):
        from simclr_jax.interop.tf1 import find_checkpoint, read_tf1
        from simclr_jax.interop.tf2 import is_saved_model, read_tf2
    if is_saved_model(source):
        if weights == 'ema':
            raise ConfigError([f'--weights=ema: {source} has only base'])
        return read_tf2(source)
    prefix = find_checkpoint(source)
    if prefix is None:
        raise ConfigError(
            [
                f'{source}: there is no checkpoint of TensorFlow, no SavedModel and no file of PyTorch; give the '
                'prefix or the directory of a checkpoint, the directory of a SavedModel, or a file that ends in '
                f'{", ".join((SAFETENSORS, *PICKLES))}'
            ]
        )
    return read_tf1(prefix, weights)


def _is_of_pytorch(source: str) -> bool:
    """Whether a path names a file of PyTorch by its ending. TensorFlow's checkpoints may end in .ckpt too."""
    is_of_tensorflow = epath.Path(source).is_dir() or epath.Path(f'{source}.index').exists()
    return os.path.splitext(source)[1] in (SAFETENSORS, *PICKLES) and not is_of_tensorflow


def _normalization(text: str) -> tuple | None:
    """(mean, std) of a value of --normalize. None for ''."""
    if not text or text in NORMALIZATIONS:
        return NORMALIZATIONS.get(text)
    try:
        numbers = tuple(float(part) for part in text.split(','))
    except ValueError:
        numbers = ()
    if len(numbers) != 6 or not all(map(math.isfinite, numbers)) or min(numbers[3:]) <= 0:
        raise ConfigError(
            [
                f'--normalize={text}: must be {", ".join(NORMALIZATIONS)} or six numbers, three means and three '
                'deviations > 0, for example 0.49,0.48,0.45,0.25,0.24,0.26'
            ]
        )
    return numbers[:3], numbers[3:]
