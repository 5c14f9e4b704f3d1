"""Evaluation during a pretraining: kNN of the representations, and the accuracy of a classifier that is learnt."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax import distributed
from simclr_jax.build import PretrainingTask
from simclr_jax.data.spec import SKIPPED, Examples
from simclr_jax.evaluation.features import Features, features_of
from simclr_jax.probes.knn import knn_accuracy
from simclr_jax.tasks.distill import Distill
from simclr_jax.training.state import TrainState


def online_evaluation(
    config: ConfigDict,
    task: PretrainingTask,
    examples: Examples,
    eval_examples: Examples | None,
    mesh: Mesh,
) -> Callable[[TrainState], dict[str, float]] | None:
    """The evaluation of a state on the test images.

    Args:
        config: Checked configuration of a pretraining.
        task: Task that is learnt.
        examples: Training images. Their labelled ones are the bank of the kNN.
        eval_examples: Test images. None: there are none.
        mesh: Devices that train.

    Returns:
        A function of a state that gives 'knn_top1_k20' and so on, and for a distilled student 'student_top1'. None
        without labels or test images.
    """
    if eval_examples is None or not examples.num_classes or not eval_examples.num_classes:
        return None
    encode = jax.jit(task.encode)
    num_logits, encode_test = 0, encode
    if isinstance(task, Distill) and task.teacher.num_classes == eval_examples.num_classes:
        num_logits, encode_test = eval_examples.num_classes, jax.jit(functools.partial(_with_logits, task))
    compute = functools.partial(features_of, image_size=config.data.image_size, batch_size=config.batch_size, mesh=mesh)
    skipped: set[str] = set()

    def evaluate(state: TrainState) -> dict[str, float]:
        variables = {'params': state.params, 'batch_stats': state.batch_stats}
        bank = compute(functools.partial(encode, variables), examples, limit=config.knn.bank_images).labelled()
        queries = compute(functools.partial(encode_test, variables), eval_examples)
        _tell_missing(eval_examples, queries, skipped)
        queries = queries.labelled()
        width = queries.values.shape[1] - num_logits
        queries, logits = dataclasses.replace(queries, values=queries.values[:, :width]), queries.values[:, width:]
        scores = {}
        # Of a label budget, none may lie in the bank.
        if len(bank.labels):
            scores |= _knn(config, bank, queries, examples.num_classes)
        if num_logits:
            scores['student_top1'] = float(np.mean(np.argmax(logits, axis=1) == queries.labels))
        return scores

    return evaluate


def _with_logits(task: Distill, variables: dict[str, Any], images: jax.Array) -> jax.Array:
    """Representations and logits, [N, F + K], in one pass over images [N, H, W, 3]."""
    return jnp.concatenate([task.encode(variables, images), task.predict(variables, images)], axis=1)


def _knn(config: ConfigDict, bank: Features, queries: Features, num_classes: int) -> dict[str, float]:
    accuracies = knn_accuracy(
        bank.values,
        bank.labels,
        queries.values,
        queries.labels,
        k=sorted({min(k, len(bank.labels)) for k in config.knn.k}),
        temperature=config.knn.temperature,
        num_classes=num_classes,
    )
    return {f'knn_top1_k{k}': accuracy for k, accuracy in accuracies.items()}


def _tell_missing(examples: Examples, found: Features, skipped: set[str]) -> None:
    """Names the test images that could not be read, each once. The training itself names those of the bank."""
    missing: Iterable[str] = map(examples.id_of, np.setdiff1d(np.arange(examples.size), found.index).tolist())
    for name in sorted(set(missing) - skipped):
        distributed.say(SKIPPED.format(name))
        skipped.add(name)
