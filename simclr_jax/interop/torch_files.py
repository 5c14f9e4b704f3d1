"""Files with the weights of PyTorch networks. Nothing in them is executed."""

import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from simclr_jax.config import ConfigError
from simclr_jax.config.storage import check_reachable, first_line
from simclr_jax.interop.extras import needs_extra

# Endings of PyTorch's own files, which are pickles.
PICKLES = ('.pth', '.pt', '.ckpt', '.bin', '.tar')
SAFETENSORS = '.safetensors'
_DTYPES = {
    **{'F64': np.float64, 'F32': np.float32, 'F16': np.float16, 'BF16': ml_dtypes.bfloat16, 'BOOL': np.bool_},
    **{f'{kind}{bits}': np.dtype(f'{kind.lower()}{bits // 8}') for kind in 'IU' for bits in (8, 16, 32, 64)},
}
# Key of our own facts in the metadata of a safetensors file.
FACTS = 'simclr_jax'


def read_state_dict(source: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads the arrays of a file, and our own facts about them.

    Args:
        source: Path of a `.safetensors` file, or of a pickle of PyTorch, which PyTorch opens with `weights_only=True`.

    Returns:
        Arrays by their name, where nested names are joined by dots: float32, integers as they are. And the facts that
        `simclr export` has stored, {} for files of other programs.

    Raises:
        ConfigError: The file is missing, damaged, holds no arrays or more than arrays, or needs a package that is not
            installed.
    """
    path = epath.Path(source)
    check_reachable(path)
    if not path.is_file():
        raise ConfigError([f'{source}: there is no such file'])
    if path.suffix == SAFETENSORS:
        arrays, facts = _read_safetensors(path)
    else:
        arrays, facts = _read_pickle(path), {}
    if not arrays:
        raise ConfigError([f'{source}: it holds no arrays'])
    return {name: _plain(array) for name, array in arrays.items()}, facts


def _plain(array: np.ndarray) -> np.ndarray:
    return array if np.issubdtype(array.dtype, np.integer) or array.dtype == bool else np.asarray(array, np.float32)


def _read_safetensors(path: epath.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with needs_extra('safetensors'):
        import safetensors
    content = path.read_bytes()
    try:
        entries = safetensors.deserialize(content)
        arrays = {
            name: np.frombuffer(entry['data'], _DTYPES[entry['dtype']]).reshape(entry['shape'])
            for name, entry in entries
        }
        header = json.loads(content[8 : 8 + struct.unpack('<Q', content[:8])[0]])
        facts = json.loads(header.get('__metadata__', {}).get(FACTS, '{}'))
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, struct.error) as error:
        raise ConfigError([f'{path}: no readable safetensors file: {first_line(error)}']) from error
    if facts and not _are_facts(facts):
        raise ConfigError([f'{path}: its entry {FACTS} is no description of a network; write the file again'])
    return arrays, facts


def _are_facts(facts: Any) -> bool:
    """Whether these are facts as `torch_out.facts_of` gives them. The configuration checks their values."""
    kinds: dict[str, type | tuple[type, ...]] = {
        **dict.fromkeys(('image_size', 'step', 'head_layer'), int),
        **dict.fromkeys(('mean', 'std'), list),
        'whole_head': bool,
    }
    if not isinstance(facts, dict):
        return False
    if 'encoder' in facts:
        kinds |= {**dict.fromkeys(('encoder', 'variant', 'stem'), str), 'width': (int, float)}
    else:
        kinds |= {**dict.fromkeys(('depth', 'border'), int), **dict.fromkeys(('sk_ratio', 'se_ratio'), (int, float))}
        kinds |= {'pool': str}
    return all(isinstance(facts.get(name), kind) for name, kind in kinds.items())


def _read_pickle(path: epath.Path) -> dict[str, np.ndarray]:
    """Arrays of a pickle. PyTorch reads it, and refuses everything but arrays and plain containers."""
    with needs_extra('torch', f'{path} is a pickle, which only PyTorch reads safely'):
        import torch  # pyright: ignore[reportMissingImports]
    with path.open('rb') as file:
        try:
            content = torch.load(file, map_location='cpu', weights_only=True)
            return {
                '.'.join(keys): _as_array(value)
                for keys, value in _leaves(content, ())
                if isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_complex()
            }
        # The reader raises whatever its parsers meet: errors of pickle, zip, tar and PyTorch itself.
        except Exception as error:
            raise ConfigError(
                [
                    f'{path}: PyTorch does not read it as weights alone: {first_line(error)}. Save the state dict '
                    'alone (torch.save(model.state_dict(), ...)), best as .safetensors'
                ]
            ) from error


def _as_array(value: Any) -> np.ndarray:
    value = value.detach()
    return (value.float() if value.is_floating_point() else value).numpy()


def _leaves(content: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(keys, value) of everything that is no mapping."""
    if not isinstance(content, Mapping):
        yield keys, content
        return
    for key, value in content.items():
        yield from _leaves(value, (*keys, str(key)))
