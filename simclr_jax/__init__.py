"""SimCLR v1 and v2 in JAX and Flax: contrastive pretraining of image encoders and its evaluation."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simclr_jax.config import base_config, load_config, load_evaluation, with_values
    from simclr_jax.evaluation.embed import embed, open_split
    from simclr_jax.evaluation.extractor import open_extractor
    from simclr_jax.evaluation.run import evaluate
    from simclr_jax.interop.convert import convert
    from simclr_jax.interop.export import export
    from simclr_jax.losses.contrastive import nt_xent
    from simclr_jax.planning.plan import make_plan
    from simclr_jax.pretraining import pretrain

__version__ = '0.1.0'

# Public names and their modules. A module is imported on the first use of its name, so `import simclr_jax` is fast.
_PUBLIC = {
    'base_config': 'simclr_jax.config',
    'load_config': 'simclr_jax.config',
    'load_evaluation': 'simclr_jax.config',
    'with_values': 'simclr_jax.config',
    'pretrain': 'simclr_jax.pretraining',
    'evaluate': 'simclr_jax.evaluation.run',
    'open_extractor': 'simclr_jax.evaluation.extractor',
    'open_split': 'simclr_jax.evaluation.embed',
    'embed': 'simclr_jax.evaluation.embed',
    'convert': 'simclr_jax.interop.convert',
    'export': 'simclr_jax.interop.export',
    'make_plan': 'simclr_jax.planning.plan',
    'nt_xent': 'simclr_jax.losses.contrastive',
}

__all__ = [
    '__version__',
    'base_config',
    'convert',
    'embed',
    'evaluate',
    'export',
    'load_config',
    'load_evaluation',
    'make_plan',
    'nt_xent',
    'open_extractor',
    'open_split',
    'pretrain',
    'with_values',
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f'simclr_jax has no {name!r}; choose from {", ".join(_PUBLIC)}')
    return getattr(importlib.import_module(_PUBLIC[name]), name)
