"""Measures that need no labels: what augmented views of the test images show of an encoder."""

import itertools

import jax
import numpy as np
from ml_collections import ConfigDict

from simclr_jax import sharding
from simclr_jax.build import make_task
from simclr_jax.data.feed import training_policy
from simclr_jax.data.spec import DataError, Examples, Share
from simclr_jax.evaluation.datasets import Dataset
from simclr_jax.evaluation.extractor import FeatureExtractor
from simclr_jax.evaluation.results import Score
from simclr_jax.metrics import representation
from simclr_jax.probes.knn import neighbourhood_agreement


def evaluate_views(encoder: FeatureExtractor, dataset: Dataset, config: ConfigDict) -> list[Score]:
    """Alignment, uniformity, effective rank and neighbourhood agreement of h and z.

    Args:
        encoder: a network; not the pixels.
        dataset: labelled or not; the views are those of the pretraining's augmentation.
        config: of the evaluation.

    Raises:
        DataError: fewer test images than devices and neighbours need.
    """
    size = min(config.measures.images, dataset.test.size)
    batch_size = min(encoder.batch_size, size // encoder.mesh.size * encoder.mesh.size)
    count = size // batch_size * batch_size if batch_size else 0
    if count <= config.measures.neighbours + 1:
        raise DataError(
            f'measures need more than measures.neighbours={config.measures.neighbours} test images, '
            f'{dataset.test.name} has {dataset.test.size}'
        )
    found = _views(encoder, dataset.test, config.seed, batch_size, count // batch_size)
    scores = []
    for layer, features in found.items():
        values = {
            'alignment': float(jax.jit(representation.alignment)(features)),
            'uniformity': float(_uniformity(features)),
            'effective_rank': representation.effective_rank(features[:, 0]),
            'agreement': neighbourhood_agreement(features[:, 0], features[:, 1], k=config.measures.neighbours),
        }
        for metric, value in values.items():
            detail = f'{layer}, k={config.measures.neighbours}' if metric == 'agreement' else layer
            scores.append(Score(dataset.name, 'measures', detail, '', metric, encoder.name, value))
    return scores


# Pairs of so many images at a time; uniformity is the mean over the blocks.
UNIFORMITY_BLOCK = 2048


def _uniformity(features: np.ndarray) -> float:
    blocks = [features[i : i + UNIFORMITY_BLOCK] for i in range(0, len(features), UNIFORMITY_BLOCK)]
    potentials = [float(np.exp(representation.uniformity(block))) for block in blocks if len(block) > 1]
    return np.log(np.mean(potentials))


def _views(
    encoder: FeatureExtractor, examples: Examples, seed: int, batch_size: int, num_batches: int
) -> dict[str, np.ndarray]:
    """{'h': [N, V, F], 'z': [N, V, D]} of augmented views, in inference mode."""
    from simclr_jax.data.pipeline import TrainBatches

    config = encoder.config
    model = make_task(config, 0, encoder.mesh).model
    batches = TrainBatches(
        examples,
        training_policy(config),
        batch_size=batch_size,
        seed=seed,
        share=Share(jax.process_index(), jax.process_count()),
        max_unreadable=config.data.max_unreadable,
    )

    @jax.jit
    def project(variables, views):
        outputs = model.apply(variables, views.reshape(-1, *views.shape[2:]), train=False)
        rows = {'h': outputs['representation'], 'z': outputs['projection']}
        return jax.tree.map(lambda values: values.reshape(*views.shape[:2], -1), rows)

    found = []
    for batch in itertools.islice(batches, num_batches):
        views = sharding.to_global({'views': batch['views']}, encoder.mesh)['views']
        found.append(jax.tree.map(sharding.to_host, project(encoder.variables, views)))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *found)
