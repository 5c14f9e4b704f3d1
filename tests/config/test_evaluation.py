"""The configurations of evaluations: the papers' settings, overrides, and what is refused."""

import numpy as np
import pytest

from simclr_jax.config import ConfigError, base_evaluation, load_evaluation
from simclr_jax.config.evaluation import PROTOCOLS
from simclr_jax.training.schedule import peak_learning_rate
from support.paths import REPOSITORY

FOLDER = REPOSITORY / 'configs' / 'evaluate'


def load(spec, *overrides):
    return load_evaluation(f'{FOLDER}/{spec}', overrides)


def peak(settings):
    return peak_learning_rate(settings.learning_rate, settings.batch_size, settings.scaling)


def test_the_base_is_sound():
    assert load_evaluation() == base_evaluation()


def test_linear_evaluation_is_that_of_the_first_paper():
    settings = base_evaluation().linear_sgd
    assert (settings.epochs, settings.batch_size, settings.optimizer, settings.weight_decay) == (
        90,
        4096,
        'momentum',
        0,
    )
    assert peak(settings) == pytest.approx(0.1 * 4096 / 256)
    assert settings.warmup_epochs == 0


@pytest.mark.parametrize('labels, epochs', [('1%', 60), ('10%', 30)])
def test_semi_supervised_learning(labels, epochs):
    """The papers' tables: v1 SGD at 0.8 with batches of 4096, v2 LARS at 0.005 sqrt(B) from the head's first layer."""
    first, second = load(f'imagenet.py:v1,labels={labels}'), load(f'imagenet.py:v2,labels={labels}')
    assert first.labels == second.labels == (labels,)
    assert first.finetune.epochs == second.finetune.epochs == epochs
    assert peak(first.finetune) == pytest.approx(0.8)
    assert (second.finetune.optimizer, second.finetune.head_layer) == ('lars', 1)
    assert peak(second.finetune) == pytest.approx(0.005 * np.sqrt(1024))
    assert first.finetune.weight_decay == second.finetune.weight_decay == 0


def test_transfer_experiments():
    linear, finetuned = load('transfer.py'), load('transfer.py:finetune')
    assert len(linear.datasets) == 12
    assert (linear.protocols, linear.image_size, linear.crop_share) == (('linear',), 224, 1.0)
    assert (linear.linear.lambdas, linear.linear.smallest, linear.linear.largest) == (45, 1e-6, 1e5)
    settings = finetuned.finetune
    assert (settings.steps, settings.batch_size, settings.batch_norm_momentum) == (20_000, 256, 0)
    assert finetuned.crop_share == 0.875
    assert (len(settings.grid_learning_rates), len(settings.grid_weight_decays)) == (7, 8)
    assert (min(settings.grid_learning_rates), max(settings.grid_learning_rates)) == pytest.approx((1e-4, 1e-1))
    assert sorted(settings.grid_weight_decays)[:2] == pytest.approx((0, 1e-6))


def test_all_protocols_on_cifar():
    # It has no masks, and not every run has a classifier of its own.
    assert set(load('cifar10.py:cpu').protocols) == set(PROTOCOLS) - {'segmentation', 'classifier'}


@pytest.mark.parametrize('spec', ['imagenet.py:v3', 'imagenet.py:v1,labels=5%', 'transfer.py:svm', 'cifar10.py:gpu'])
def test_arguments_that_are_no_recipe(spec):
    with pytest.raises(ConfigError, match='config argument'):
        load(spec)


@pytest.mark.parametrize(
    'field, text, message',
    [
        ('protocols', 'knn,knm', 'unknown knm'),
        ('svm.layers', 'h,features6', 'unknown features6'),
        ('finetune.after_block', '-2', 'an integer >= -1'),
        ('finetune.grid_learning_rates', 'a,b', 'must be numbers with commas between them'),
        ('finetune.grid_learning_rates', '0,1', 'finite numbers > 0'),
        ('multihead.optimizer', 'sgd', 'must be one of lars, momentum, adam'),
        ('bootstrap_draws', '10', 'an integer >= 100'),
        ('linear.smallest', '1e6', 'must not be above linear.largest'),
        ('finetune.epoch', '1', 'did you mean finetune.epochs'),
    ],
)
def test_wrong_values_name_rule_and_cure(field, text, message):
    with pytest.raises(ConfigError, match=message):
        load_evaluation('', [(field, text)])


@pytest.mark.parametrize(
    'field, text, message',
    [
        ('labels', 'all,10', r"labels=\('all', '10'\): masks have no number of labels per class; .* such as '10%'"),
        ('datasets', 'cifar10', 'does not apply to segmentation; it has its own data'),
        ('image_size', '64', 'image_size=64: does not apply to segmentation; set segmentation.image_size'),
        ('crop_share', '1', 'crop_share=1.0: does not apply to segmentation'),
        ('batch_size', '8', 'batch_size=8: does not apply to segmentation; set segmentation.batch_size'),
        ('segmentation.lists', 'lists/{split}.txt', "segmentation.tfds='pets' has none; choose a part of a split"),
        ('segmentation.names', ','.join(map(str, range(256))), 'has 256 names: must be at most 255'),
    ],
)
def test_settings_that_segmentation_would_ignore_are_refused(field, text, message):
    with pytest.raises(ConfigError, match=message):
        load_evaluation('', [('protocols', 'segmentation'), ('segmentation.tfds', 'pets'), (field, text)])


def test_segmentation_counts_steps_or_epochs():
    own = [('protocols', 'segmentation'), ('segmentation.tfds', 'pets'), ('segmentation.epochs', '3')]
    assert load_evaluation('', own).segmentation.epochs == 3
    with pytest.raises(ConfigError, match=r'segmentation.epochs=3.0, segmentation.steps=10: set one of them'):
        load_evaluation('', [*own, ('segmentation.steps', '10')])


def test_segmentation_takes_shares_and_leaves_other_settings_to_other_protocols():
    own = [('protocols', 'segmentation'), ('segmentation.tfds', 'pets')]
    assert load_evaluation('', [*own, ('labels', '1%,all')]).labels == ('1%', 'all')
    beside = [*own, ('protocols', 'knn,segmentation'), ('labels', '10'), ('image_size', '64')]
    assert load_evaluation('', beside).image_size == 64


def test_a_configuration_of_a_pretraining_is_none_of_an_evaluation():
    with pytest.raises(ConfigError, match='there is no such field'):
        load_evaluation(f'{REPOSITORY}/configs/digits.py')


def test_segmentation_of_voc_has_the_published_settings():
    config = load('segmentation.py:/data/VOC2012')
    settings = config.segmentation
    assert (settings.steps, settings.batch_size, peak(settings), settings.weight_decay) == (20_000, 16, 0.01, 5e-4)
    assert (settings.image_size, settings.output_stride, settings.channels, settings.after_block) == (512, 8, 512, -1)
    assert (len(settings.names), settings.ignore, settings.first_class) == (21, 255, 0)
    with pytest.raises(ConfigError, match='give the path of VOC2012'):
        load('segmentation.py')
