"""Lengths of a run that no counter of steps can hold."""

import pytest

from simclr_jax.build import MOST_STEPS, make_schedule
from simclr_jax.config import ConfigError, base_config, with_values


@pytest.mark.parametrize(
    'field, value',
    [
        *((name, 1e300) for name in ('train_epochs', 'warmup_epochs', 'checkpoint_every_epochs', 'knn.every_epochs')),
        *((name, 10**30) for name in ('train_steps', 'checkpoint_every_steps', 'log_every_steps')),
        ('train_epochs', 1e308),
        ('train_steps', MOST_STEPS + 1),
    ],
)
def test_lengths_above_the_counter_of_steps_are_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=rf'^{field}=.* is more than 2,147,483,647 steps; choose less'):
        make_schedule(with_values(base_config(), {field: value, 'batch_size': 1}), 1437)


def test_the_longest_run_has_a_schedule():
    config = with_values(base_config(), {'train_steps': MOST_STEPS, 'batch_size': 1})
    assert make_schedule(config, 1437).total_steps == MOST_STEPS
