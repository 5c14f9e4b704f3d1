"""Measures that need no labels: alignment, uniformity, effective rank and agreement of augmented views."""

import functools
import itertools
from typing import Any

import jax
import numpy as np

from simclr_jax import distributed, sharding
from simclr_jax.config import with_values
from simclr_jax.data.feed import open_feed
from simclr_jax.data.spec import DataError, Examples
from simclr_jax.evaluation.extractor import FeatureExtractor
from simclr_jax.evaluation.protocols.measurement import Measurement
from simclr_jax.evaluation.results import Score
from simclr_jax.metrics import representation
from simclr_jax.networks import make_model
from simclr_jax.probes.knn import neighbourhood_agreement

# Rows whose products with all others are in memory at a time.
UNIFORMITY_BLOCK = 2048


def measures(measurement: Measurement) -> list[Score]:
    """Alignment, uniformity, effective rank and neighbourhood agreement of h and z.

    The views are made by the augmentation of the pretraining, through the same feed.

    Args:
        measurement: Extractor of a network and a data set, with or without labels.

    Raises:
        DataError: The test split has fewer images than devices and neighbours need.
    """
    extractor, dataset, config = measurement.extractor, measurement.dataset, measurement.config
    size = min(config.measures.images, dataset.test.size)
    batch_size = min(extractor.batch_size, size // extractor.mesh.size * extractor.mesh.size)
    count = size // batch_size * batch_size if batch_size else 0
    neighbours = config.measures.neighbours
    if count <= neighbours + 1:
        raise DataError(
            f'measures need more than measures.neighbours={neighbours} test images, '
            f'{dataset.test.name} has {dataset.test.size}; choose fewer neighbours'
        )
    outputs = _outputs_of_views(extractor, dataset.test, config.seed, batch_size, count // batch_size)
    found = distributed.from_first(
        lambda: {layer: _values(features, neighbours) for layer, features in outputs.items()}, (ValueError,)
    )
    scores = []
    for layer, values in found.items():
        for metric, value in values.items():
            detail = f'{layer}, k={neighbours}' if metric == 'agreement' else layer
            scores.append(Score(dataset.name, 'measures', detail, '', metric, extractor.name, value))
    return scores


def _values(features: np.ndarray, neighbours: int) -> dict[str, float]:
    """The measures of the features [N, V, F] of two views."""
    return {
        'alignment': float(jax.jit(representation.alignment)(features)),
        'uniformity': float(_uniformity(features)),
        'effective_rank': representation.effective_rank(features[:, 0]),
        'agreement': neighbourhood_agreement(features[:, 0], features[:, 1], k=neighbours),
    }


_uniformity = jax.jit(functools.partial(representation.uniformity, block_size=UNIFORMITY_BLOCK))


def _outputs_of_views(
    extractor: FeatureExtractor, examples: Examples, seed: int, batch_size: int, num_batches: int
) -> dict[str, np.ndarray]:
    """{'h': [N, V, F], 'z': [N, V, D]} of augmented views, in inference mode."""
    mesh = extractor.mesh
    model = make_model(extractor.config, 0)
    views = extractor.config.augment.views
    # A student of class probabilities has seen one view at a time. The measures compare two.
    views = views if len(views) > 1 else 2 * views
    changes = {'batch_size': batch_size, 'seed': seed, 'augment.views': views}
    config = with_values(extractor.config, changes)
    feed = open_feed(config, examples, mesh)

    @jax.jit
    def outputs(variables, batch, key):
        views = feed.make_views(batch, key)
        found: Any = model.apply(variables, views.reshape(-1, *views.shape[2:]), train=False)
        rows = {'h': found['representation'], 'z': found['projection']}
        return jax.tree.map(lambda values: values.reshape(*views.shape[:2], -1), rows)

    found = []
    for step, batch in enumerate(itertools.islice(feed.batches(0), num_batches)):
        key = jax.random.fold_in(jax.random.key(seed), step)
        found.append(jax.tree.map(sharding.to_host, outputs(extractor.variables, sharding.to_global(batch, mesh), key)))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *found)
