"""`simclr evaluate` on the digits: every protocol, what is kept, what is compared, what is refused."""

import contextlib
import dataclasses
import io
import json
import re

import jax
import numpy as np
import pytest
from sklearn import datasets as sklearn_datasets
from sklearn import neighbors

from simclr_jax import sharding
from simclr_jax.build import make_task
from simclr_jax.cli.main import main
from simclr_jax.config import load_evaluation
from simclr_jax.config.label_budget import parse_labels
from simclr_jax.data.select import select
from simclr_jax.evaluation.datasets import Dataset, open_dataset
from simclr_jax.evaluation.extractor import FeatureExtractor, open_extractor
from simclr_jax.evaluation.features import Features
from simclr_jax.evaluation.protocols import by_training as trained_module
from simclr_jax.evaluation.protocols import on_features as frozen_module
from simclr_jax.evaluation.protocols.measurement import Measurement
from simclr_jax.training import workdir
from support.encoders import make_workdir
from support.runs import mesh_of

# Shortest settings of everything that trains, and few resamplings.
QUICK = [
    '--config.bootstrap_draws=100',
    '--config.draws=2',
    '--config.knn.k=5',
    '--config.linear.lambdas=3',
    '--config.linear.smallest=0.1',
    '--config.svm.positives=8',
    '--config.svm.samples=2',
    '--config.measures.images=100',
    *(f'--config.{name}.steps=2' for name in ('linear_sgd', 'finetune', 'multihead')),
    *(f'--config.{name}.batch_size=32' for name in ('linear_sgd', 'finetune', 'multihead')),
]


def evaluate(directory, *arguments):
    return main(['evaluate', f'--workdir={directory}', *QUICK, *arguments])


def scores_of(directory):
    result = json.loads((directory / 'result.json').read_text())
    return {
        (s['encoder'], s['dataset'], s['protocol'], s['detail'], s['labels'], s['metric']): s for s in result['scores']
    }


@pytest.fixture(scope='module', autouse=True)
def two_devices():
    """Features, kNN and machines on eight are in other files; programs for two are compiled sooner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, 'make_mesh', mesh_of(2))
        yield


@pytest.fixture(scope='module')
def untouched(tmp_path_factory):
    return make_workdir(tmp_path_factory.mktemp('evaluate') / 'run')


@pytest.fixture(scope='module')
def frozen(untouched):
    """After all protocols on frozen features."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert evaluate(untouched, '--protocols=knn,linear,svm,low_shot,measures') == 0
    (untouched / 'said.txt').write_text(said.getvalue())
    assert evaluate(untouched, '--protocols=knn', '--labels=5,all', '--baselines=pixels,untrained') == 0
    return untouched


class TestFrozen:
    def test_every_cell_is_there(self, frozen):
        scores = scores_of(frozen)
        found = {(encoder, *cell) for encoder, dataset, *cell, _ in scores if dataset == 'digits'}
        expected = {
            (encoder, 'knn', 'k=5', labels) for encoder in ('pixels', 'untrained', 'simclr') for labels in ('5', 'all')
        }
        expected |= {('simclr', 'linear', '', 'all'), ('simclr', 'svm', 'h', 'all'), ('simclr', 'low_shot', 'h', '8')}
        assert {cell for cell in found if cell[1] != 'measures'} == expected
        measures = {(s['metric'], s['detail']) for s in scores.values() if s['protocol'] == 'measures'}
        names = ('alignment', 'uniformity', 'effective_rank')
        assert measures == {(name, layer) for name in names for layer in ('h', 'z')} | {
            ('agreement', 'h, k=10'),
            ('agreement', 'z, k=10'),
        }

    def test_intervals_hold_the_values(self, frozen):
        for score in scores_of(frozen).values():
            if score['protocol'] != 'measures':
                assert 0 <= score['low'] <= score['value'] <= score['high'] <= 1
                assert (score['deviation'] is None) == (score['labels'] == 'all')

    def test_times_and_scores_are_said_as_they_come(self, frozen):
        lines = [re.sub(r'\d+ s\b', 'S', line) for line in (frozen / 'said.txt').read_text().splitlines()]
        heading = 'SimCLR, digits/train (1,437) -> digits/test (360): knn, all labels'
        begin = lines.index(heading)
        encoded = ['digits/train: 1,437 images in S.', 'digits/test: 360 images in S.']
        assert lines[begin + 1 : begin + 3] == encoded
        assert re.fullmatch(r'  .*knn.*: \d+\.\d \[\d+\.\d, \d+\.\d\]', lines[begin + 3])
        assert lines[begin + 4] == '  measured in S'
        assert lines.count(encoded[0]) == 1

    def test_headlines_of_the_result(self, frozen):
        result, scores = json.loads((frozen / 'result.json').read_text()), scores_of(frozen)
        assert result['step'] == 3
        assert result['knn_top1'] == scores['simclr', 'digits', 'knn', 'k=5', 'all', 'top1']['value']
        assert result['linear_top1'] == scores['simclr', 'digits', 'linear', '', 'all', 'top1']['value']
        assert result['datasets'] == {'digits': 'digits/train (1,437) -> digits/test (360)'}

    def test_raw_pixels_are_what_scikit_learn_makes_of_them(self, frozen):
        digits = sklearn_datasets.load_digits()
        is_test = np.arange(len(digits.target)) % 5 == 0
        pixels = np.round(digits.images.reshape(len(digits.target), -1) * (255 / 16))
        pixels /= np.linalg.norm(pixels, axis=1, keepdims=True)
        # Cosine similarity s of unit vectors at distance d: s = 1 - d^2 / 2; weights exp(s / 0.07).
        classifier = neighbors.KNeighborsClassifier(5, weights=lambda d: np.exp((1 - d**2 / 2) / 0.07))
        classifier.fit(pixels[~is_test], digits.target[~is_test])
        expected = classifier.score(pixels[is_test], digits.target[is_test])
        assert scores_of(frozen)['pixels', 'digits', 'knn', 'k=5', 'all', 'top1']['value'] == pytest.approx(expected)

    def test_table_and_picture(self, frozen):
        table = (frozen / 'results.md').read_text()
        assert ' raw pixels |' in table.splitlines()[2]
        assert '| digits, linear, all labels ' in table
        assert (frozen / 'report' / 'summary.png').stat().st_size > 10_000


class TestFeatures:
    def test_are_those_of_every_image(self, frozen):
        """1,437 images divide neither by the batch of 64 nor by the 2 devices."""
        encoder, _ = open_extractor(str(frozen))
        (path,) = (frozen / 'features' / encoder.identity).glob('*train*.h.npz')
        with np.load(path, allow_pickle=False) as kept:
            features, labels, ids = kept['features'], kept['labels'], kept['ids']
        digits = sklearn_datasets.load_digits()
        is_train = np.arange(len(digits.target)) % 5 != 0
        images = np.round(digits.images[is_train] * (255 / 16)).astype(np.float32) / 255
        images = np.repeat(images[..., None], 3, axis=-1)
        model = make_task(encoder.config, 0, encoder.mesh).model
        expected = jax.jit(lambda images: model.apply(encoder.variables, images, method='encode'))(images)
        # Batches of another size are summed in another order.
        np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(labels, digits.target[is_train])
        assert ids[5] == 'digits/train/5'

    def test_are_extracted_once(self, frozen, monkeypatch):
        monkeypatch.setattr(FeatureExtractor, 'encode', lambda *_: pytest.fail('extracted again'))
        assert evaluate(frozen, '--protocols=knn') == 0

    def test_splits_share_a_program(self, frozen):
        encoder, _ = open_extractor(str(frozen))
        home = open_dataset('', encoder.config.data)
        for split in (home.train, home.test):
            encoder.encode(split, encoder.function('h'))
        (program,) = encoder.programs.values()
        assert program._cache_size() == 1

    @pytest.mark.slow
    def test_of_other_labels_or_images_are_not_taken(self, frozen, monkeypatch, tmp_path):
        """The same files' names, with other labels and then other images in them."""
        encoded, encode = [], FeatureExtractor.encode
        monkeypatch.setattr(FeatureExtractor, 'encode', lambda *arguments: encoded.append(1) or encode(*arguments))
        for seed, shift, expected in ((0, 0, 2), (0, 0, 2), (0, 1, 4), (1, 1, 6)):
            labels = (np.arange(40) + shift) % 2
            images = np.random.default_rng(seed).integers(0, 255, (40, 8, 8), dtype=np.uint8)
            for split in ('train', 'test'):
                np.savez(tmp_path / f'x_{split}.npz', image=images, label=labels)
            assert evaluate(frozen, '--protocols=knn', f'--dataset={tmp_path}/x_{{split}}.npz') == 0
            assert len(encoded) == expected


def test_all_labels_of_a_published_subset_are_used(untouched, monkeypatch):
    """As with ImageNet's: it is 1 % of the data set, and not to be divided by a hundred once more."""
    home = workdir.read_config(str(untouched)).data
    dataset = open_dataset('', home)
    subset = dataclasses.replace(dataset, train=select(dataset.train, np.arange(30)))
    loaded, banks = [], []
    monkeypatch.setattr(Dataset, 'published', lambda self, labels: loaded.append(labels) or subset)
    predict = frozen_module.knn_predict
    monkeypatch.setattr(
        frozen_module, 'knn_predict', lambda bank, *a, **k: banks.append(len(bank)) or predict(bank, *a, **k)
    )
    encoder, _ = open_extractor(str(untouched))
    config = load_evaluation('', [('knn.k', '5'), ('bootstrap_draws', '100')])
    (score,) = frozen_module.knn(Measurement(encoder, dataset, parse_labels('1%'), config, str(untouched)))
    assert banks == [30]
    assert len(loaded) == 1
    assert (score.labels, score.deviation) == ('1%', None)


class TestTrained:
    @pytest.fixture(scope='class')
    def trained(self, untouched):
        arguments = ['--protocols=linear_sgd,finetune,multihead', '--labels=10%', '--config.finetune.head_layer=1']
        assert evaluate(untouched, *arguments) == 0
        return untouched, arguments

    def test_every_cell_is_there(self, trained):
        found = {(protocol, detail) for _, _, protocol, detail, labels, _ in scores_of(trained[0]) if labels == '10%'}
        heads = {('multihead', f'feature{number}') for number in range(1, 4)}
        assert found >= {('linear_sgd', ''), ('finetune', '')} | heads

    def test_again_nothing_is_trained(self, trained, capsys):
        before = scores_of(trained[0])
        assert evaluate(trained[0], *trained[1]) == 0
        assert capsys.readouterr().out.count('Step 2 of 2 is reached already') == 3
        assert scores_of(trained[0]) == before

    def test_settings_and_metrics_stay(self, trained):
        (directory,) = (trained[0] / 'trained').glob('finetune-*')
        settings = json.loads((directory / 'settings.json').read_text())
        assert settings['settings']['head_layer'] == 1
        assert settings['images'] == 'digits/train (140)'
        assert (directory / 'metrics.jsonl').exists()

    def test_grid_chooses_on_validation_images(self, trained, monkeypatch):
        """Of made-up trainings the second setting is right on the images held out, whatever the test images say."""
        calls = []

        def train(trainer, settings, programs, queries, name, keep=True):
            calls.append((settings.learning_rate, settings.weight_decay, programs.learnt.size, queries.size))
            right = np.eye(10)[queries.labels] if len(calls) == 2 else np.eye(10)[(queries.labels + 1) % 10]
            return Features(right[:, None], queries.labels, np.arange(queries.size))

        monkeypatch.setattr(trained_module, '_trained_logits', train)
        arguments = ['--protocols=finetune', '--config.finetune.grid_weight_decays=0,0.5']
        assert evaluate(trained[0], *arguments, '--config.finetune.grid_learning_rates=0.1') == 0
        # A fifth of each class is held out; the decay is divided by the rate; the last training has all images.
        assert calls == [(0.1, 0.0, 1148, 289), (0.1, 5.0, 1148, 289), (0.1, 5.0, 1437, 360)]

    @pytest.mark.slow
    def test_pairs_of_a_grid_share_their_program_and_learn_at_their_own_rates(self, untouched, monkeypatch, tmp_path):
        compiled, trained, train = [], {}, trained_module._train

        def watch(trainer, settings, programs, directory):
            compiled.append(programs)
            variables = jax.device_get(train(trainer, settings, programs, directory))
            trained[settings.learning_rate, settings.weight_decay] = variables['params']['probe']['kernel']
            return variables

        monkeypatch.setattr(trained_module, '_train', watch)
        fields = {
            'protocols': 'finetune',
            'finetune.steps': '2',
            'finetune.grid_learning_rates': '0.001,0.1',
            'finetune.grid_weight_decays': '0,0.01',
        }
        encoder, _ = open_extractor(str(untouched))
        dataset = open_dataset('', workdir.read_config(str(untouched)).data)
        config = load_evaluation('', fields.items())
        trained_module.finetune(Measurement(encoder, dataset, parse_labels('10%'), config, str(tmp_path)))
        cells, final = compiled[:4], compiled[4]
        assert all(cell is cells[0] for cell in cells)
        assert final.learnt.size > cells[0].learnt.size
        assert cells[0].step._cache_size() == 1
        # Of the same start, each pair of settings makes something else.
        assert len({kernel.tobytes() for kernel in trained.values()}) == 4


@pytest.mark.slow
def test_several_labels_an_image(untouched, tmp_path, capsys):
    generator = np.random.default_rng(0)
    for split, size in (('train', 60), ('test', 30)):
        targets = generator.integers(0, 2, (size, 3))
        images = generator.integers(0, 60, (size, 8, 8, 3)) + 180 * targets[:, None, None, :]
        np.savez(tmp_path / f'many_{split}.npz', image=images.astype(np.uint8), label=targets)
    name = f'{tmp_path}/many_{{split}}.npz'
    assert evaluate(untouched, f'--dataset={name}', '--protocols=knn,linear,svm') == 0
    assert 'knn: needs one label per image' in capsys.readouterr().out
    found = {key[2:]: score['value'] for key, score in scores_of(untouched).items() if key[1] == name}
    assert set(found) >= {('linear', '', 'all', 'map_11_point'), ('svm', 'h', 'all', 'map')}
    assert evaluate(untouched, f'--dataset={name}', '--protocols=finetune', '--labels=50%') == 0
    assert ('simclr', name, 'finetune', '', '50%', 'map_11_point') in scores_of(untouched)
    # Which colours are bright is plain in any features that have not lost them.
    assert found['linear', '', 'all', 'map_11_point'] > 0.8


@pytest.mark.slow
def test_earlier_scores_stay_and_those_of_another_step_go(tmp_path):
    directory = make_workdir(tmp_path / 'run')
    for k in (3, 7):
        assert evaluate(directory, '--protocols=knn', f'--config.knn.k={k}') == 0
    assert {key[3] for key in scores_of(directory)} == {'k=3', 'k=7'}
    result = json.loads((directory / 'result.json').read_text())
    (directory / 'result.json').write_text(json.dumps(result | {'step': 2}))
    assert evaluate(directory, '--protocols=knn', '--config.knn.k=3') == 0
    assert {key[3] for key in scores_of(directory)} == {'k=3'}


def test_compare(frozen, tmp_path, capsys):
    other = make_workdir(tmp_path / 'other', seed=1)
    assert evaluate(other, '--protocols=knn') == 0
    capsys.readouterr()
    assert main(['evaluate', '--compare', str(frozen), str(other)]) == 0
    table = capsys.readouterr().out.splitlines()
    assert f'{frozen} (step 3)' in table[0]
    (row,) = [line for line in table if line.startswith('| digits, knn k=5, all')]
    assert row.count('[') == 2


class TestMistakes:
    @pytest.mark.parametrize(
        'arguments, message',
        [
            (['--protocols=knm'], 'unknown knm; choose from knn'),
            (['--labels=0'], "labels '0' must be"),
            (['--dataset=/nowhere/x_{split}.npz'], 'must have the splits train and test'),
            (['--dataset=folder:/nowhere,aircraft'], 'aircraft cannot be prepared by TensorFlow Datasets'),
            (['--protocols=finetune', '--config.finetune.head_layer=9'], 'the pretraining has a head of 2 layers'),
            (['--protocols=low_shot', '--config.svm.positives=500'], 'the smallest class has only'),
            (['--config.finetune.grid_learning_rates=0.1'], 'set both or neither'),
            (['--labels=500'], 'ask for at most'),
            (['--protocols=svm', '--config.svm.layers=feature5'], 'this encoder has only feature1 to feature3'),
        ],
    )
    def test_what_is_asked(self, untouched, capsys, arguments, message):
        assert evaluate(untouched, *arguments) == 2
        assert message in capsys.readouterr().err

    @pytest.mark.parametrize(
        'labels, message',
        [(None, 'has no labels, and knn, linear need them'), (np.zeros(20, int), 'has only one class')],
    )
    def test_data_without_what_is_needed(self, untouched, tmp_path, capsys, labels, message):
        images = np.random.default_rng(0).integers(0, 255, (20, 8, 8), dtype=np.uint8)
        for split in ('train', 'test'):
            np.savez(tmp_path / f'x_{split}.npz', image=images, **({} if labels is None else {'label': labels}))
        assert evaluate(untouched, f'--dataset={tmp_path}/x_{{split}}.npz') == 2
        assert message in capsys.readouterr().err

    @pytest.mark.slow
    def test_without_labels_there_are_the_measures(self, untouched, tmp_path):
        images = np.random.default_rng(0).integers(0, 255, (24, 8, 8), dtype=np.uint8)
        for split in ('train', 'test'):
            np.savez(tmp_path / f'x_{split}.npz', image=images)
        assert evaluate(untouched, f'--dataset={tmp_path}/x_{{split}}.npz', '--protocols=measures') == 0

    def test_no_work_directory_and_no_results(self, tmp_path, capsys):
        assert evaluate(tmp_path) == 2
        assert 'holds no config.json' in capsys.readouterr().err
        assert main(['evaluate', '--compare', str(tmp_path)]) == 2
        assert 'has no result.json' in capsys.readouterr().err
        assert main(['evaluate']) == 2
        assert 'give either --workdir' in capsys.readouterr().err
