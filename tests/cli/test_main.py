"""The program: help at once, and a message instead of a traceback for every mistake of the user's."""

import errno
import os
import pathlib
import resource
import signal
import subprocess
import sys

import jax
import pytest

import simclr_jax
from simclr_jax import pretraining
from simclr_jax.cli.main import main
from simclr_jax.training import workdir
from simclr_jax.training.loop import Preempted
from simclr_jax.training.meter import NotFiniteError

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
DIGITS = f'--config={REPOSITORY}/configs/digits.py'

# Runs `python -m simclr_jax`, then tells on stderr which of the slow packages it has imported.
HELP = """
import atexit, runpy, sys
slow = {'jax', 'tensorflow', 'numpy', 'ml_collections'}
atexit.register(lambda: print('imported:', *sorted(slow & set(sys.modules)), file=sys.stderr))
sys.argv[0] = 'simclr'
runpy.run_module('simclr_jax', run_name='__main__')
"""


def cpu_seconds_of_children():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['--help'], ['train', 'evaluate', '--version']),
        (['train', '--help'], ['--config', '--workdir', '--config.FIELD=VALUE']),
        (['train', '--help'], ['executed, so use only files that you trust', '`simclr config`']),
        (['evaluate', '--help'], ['--workdir', '--protocols', '--labels', '--baselines', 'config --evaluation']),
        (['--version'], [simclr_jax.__version__]),
    ],
)
def test_help_comes_at_once(arguments, words):
    before = cpu_seconds_of_children()
    done = subprocess.run(
        [sys.executable, '-c', HELP, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, 'imported:\n')
    assert all(word in done.stdout for word in words)
    # Processor time: the wall clock of a busy machine says nothing about the program.
    assert cpu_seconds_of_children() - before < 1.0


# After any command, imports TensorFlow, then what Keras would have taken along; tells when they are there.
IMPORT_TENSORFLOW = """
import sys
from simclr_jax.cli.main import main
assert main(['evaluate', '--workdir=/nowhere']) == 2
import tensorflow
assert 'keras' in sys.modules
print(*sorted({'matplotlib', 'sklearn'} & set(sys.modules)))
import matplotlib, sklearn
import keras
print(*sorted({'matplotlib', 'sklearn'} & set(sys.modules)))
"""


def test_keras_takes_along_nothing_and_loses_nothing_for_others():
    pytest.importorskip('tensorflow', reason='tests how it is imported')
    done = subprocess.run(
        [sys.executable, '-c', IMPORT_TENSORFLOW], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, '\nmatplotlib sklearn\n')


@pytest.fixture
def mistake(capsys, monkeypatch):
    """mistake('train', ...) -> what the program says on stderr; it must exit with 2, and train nothing."""

    def train(*arguments, **options):
        raise AssertionError('the mistake went unnoticed')

    monkeypatch.setattr(pretraining, 'pretrain', train)

    def run(*arguments):
        try:
            code = main(arguments)
        except SystemExit as exit_:
            code = exit_.code
        told = capsys.readouterr()
        assert (code, told.out) == (2, '')
        assert 'Traceback' not in told.err
        assert told.err.startswith(('simclr: ', 'usage: simclr'))
        return told.err

    return run


def test_unknown_field(mistake, tmp_path):
    told = mistake('train', DIGITS, f'--workdir={tmp_path}', '--config.loss.temprature=0.5')
    assert '--config.loss.temprature=0.5' in told
    assert 'did you mean loss.temperature?' in told
    assert list(tmp_path.iterdir()) == []


def test_several_mistakes_are_told_at_once(mistake, tmp_path):
    told = mistake(
        'train',
        DIGITS,
        f'--workdir={tmp_path}',
        '--config.batch_size=many',
        '--config.loss.temperature=-1',
        '--config.optimizer.name=lbfgs',
        '--config.sede=1',
    )
    lines = told.splitlines()
    assert len(lines) == 4
    for words in ('batch_size=many', 'loss.temperature=-1', "optimizer.name='lbfgs'", 'did you mean seed'):
        assert sum(words in line for line in lines) == 1


def test_missing_configuration_file(mistake, tmp_path):
    told = mistake('train', '--config=configs/cifar11.py:r18', f'--workdir={tmp_path}')
    assert 'there is no file configs/cifar11.py; give your own, or one of configs/cifar10.py, ' in told


def test_mistake_in_the_configuration_file(mistake, tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text('from simclr_jax.config import base_config\n\nbase_config().batch_size = "many"\n')
    told = mistake('train', f'--config={path}', f'--workdir={tmp_path / "run"}')
    assert f'--config={path}, line 3' in told
    assert 'batch_size' in told


def test_options_that_must_be_given(mistake, tmp_path):
    assert '--workdir' in mistake('train', DIGITS)
    assert '--config' in mistake('train', f'--workdir={tmp_path}')
    assert '--workdir' in mistake('evaluate')
    assert 'COMMAND' in mistake()
    assert 'did you mean train?; choose from train, evaluate' in mistake('trian')
    assert 'did you mean --workdir=x?' in mistake('train', DIGITS, '--work=x')


@pytest.mark.parametrize(
    'arguments, right',
    [
        (['train', '--batch_size=4'], '--config.batch_size=4'),
        (['train', '--temperature', '0.1'], '--config.distill.temperature or --config.knn.temperature'),
        (['train', '--learning-rate=1'], '--config.optimizer.learning_rate=1'),
        (['train', '--wrokdir=x'], '--workdir=x'),
        (['evaluate', '--epochs=3'], '--config.finetune.epochs=3'),
        (['evaluate', '--protocol=knn'], '--protocols=knn'),
        (['embed', '--batch_size=4'], '--batch-size=4'),
    ],
)
def test_unknown_options_come_with_the_right_one(mistake, arguments, right):
    told = mistake(*arguments)
    assert 'there is no such option; did you mean ' in told
    assert f'{right}' in told


@pytest.mark.parametrize(
    'arguments',
    [
        ['train', DIGITS, '--workdir='],
        ['train', DIGITS, '--workdir', ' '],
        ['evaluate', '--workdir='],
        ['evaluate', '--compare', ''],
        ['embed', '--workdir=', '--out=x.npz'],
        ['embed', '--workdir=x', '--out='],
    ],
)
def test_a_directory_that_is_empty_text_is_refused(mistake, arguments):
    assert 'names no file or directory; give a path' in mistake(*arguments)


def test_home_is_expanded_in_options(monkeypatch, tmp_path, mistake):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    directories = []
    monkeypatch.setattr(pretraining, 'pretrain', lambda config, directory, **_: directories.append(directory))
    assert main(['train', DIGITS, '--workdir=~/run']) == 0
    assert directories == [f'{tmp_path}/run']
    for arguments in (
        ['evaluate', '--workdir=~/none'],
        ['evaluate', '--compare', '~/none'],
        ['embed', '--workdir=~/none', '--out=~/x.npz'],
        ['embed', '--workdir=x', '--out=~/none/x.npz'],
        ['embed', '--workdir=x', '--out=x.npz', '--neighbours=a', '--picture=~/none/x.png'],
        ['plan', DIGITS, '--json=~/none/x.json'],
    ):
        assert f'{tmp_path}/none' in mistake(*arguments)
    assert list(tmp_path.iterdir()) == []
    assert 'there is no home directory ~nobody-here' in mistake('train', DIGITS, '--workdir=~nobody-here/x')


def test_the_shipped_configurations_are_found_from_everywhere(trained, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(['train', '--config=configs/digits.py', '--workdir=x']) == 0
    assert trained[0].data.source == 'digits'


def test_work_directory_of_another_configuration(capsys, monkeypatch, tmp_path):
    def claim(config, directory, *, allow_change, **_):
        return workdir.claim(directory, config, allow_change=allow_change)

    monkeypatch.setattr(pretraining, 'pretrain', claim)
    train = ['train', DIGITS, f'--workdir={tmp_path}']
    assert main(train) == 0
    assert main([*train, '--config.loss.temperature=0.7']) == 2
    assert 'loss.temperature: 0.5 -> 0.7' in capsys.readouterr().err
    assert main([*train, '--config.loss.temperature=0.7', '--allow-config-change']) == 0


@pytest.mark.parametrize(
    'option, words',
    [
        ('--protocols=knn,svn', ["protocols=('knn', 'svn')", 'unknown svn', 'knn, linear']),
        ('--labels=1,few', ["labels 'few'", "must be 'all'"]),
        ('--labels=0', ["labels '0'", "must be 'all'"]),
        ('--labels=²', ["labels '²'", "must be 'all'"]),
        ('--labels=', ['labels=()', "the defaults are ('',) and ('all',)"]),
        ('--baselines=random', ["baselines=('random',)", 'unknown random', 'pixels, untrained']),
        ('--config.finetune.epoch=3', ['finetune.epoch=3', 'did you mean finetune.epochs?']),
        ('--config.knn.k=0', ['knn.k=(0,)', 'integers >= 1']),
    ],
)
def test_wrong_choices_of_an_evaluation(mistake, tmp_path, option, words):
    told = mistake('evaluate', f'--workdir={tmp_path}', option)
    assert all(word in told for word in words)


def test_all_wrong_choices_of_an_evaluation_at_once(mistake, tmp_path):
    told = mistake('evaluate', f'--workdir={tmp_path}', '--protocols=svn', '--labels=few', '--baselines=random')
    assert len(told.splitlines()) == 3


def test_evaluation_of_what_is_no_work_directory(mistake, tmp_path):
    told = mistake('evaluate', f'--workdir={tmp_path}')
    assert f'{tmp_path} is not a work directory' in told
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def trained(monkeypatch):
    """The configurations with which pretraining was started."""
    configs = []
    monkeypatch.setattr(pretraining, 'pretrain', lambda config, directory, **options: configs.append(config))
    return configs


def test_overrides_with_an_equals_sign_or_a_space(trained, tmp_path):
    assert (
        main(
            [
                '--config.loss.margin=0.7',
                'train',
                '--config.loss.temperature',
                '0.25',
                DIGITS,
                '--config.augment.views',
                'crop,crop noise',
                '--workdir',
                str(tmp_path),
                '--config.data.path=a=b',
                '--config.warmup_epochs',
                '0',
            ]
        )
        == 0
    )
    (config,) = trained
    assert (config.loss.margin, config.loss.temperature, config.warmup_epochs) == (0.7, 0.25, 0.0)
    assert config.augment.views == ('crop', 'crop noise')
    assert config.data.path == 'a=b'


def test_the_last_of_two_overrides_counts(trained, tmp_path):
    main(['train', DIGITS, f'--workdir={tmp_path}', '--config.seed=1', '--config.seed=2'])
    assert trained[0].seed == 2


def test_an_override_without_value_takes_no_other_option_for_it(mistake, tmp_path):
    for arguments in (['--config.seed', f'--workdir={tmp_path}'], [f'--workdir={tmp_path}', '--config.seed']):
        assert '--config.seed: needs a value; write --config.seed=VALUE' in mistake('train', DIGITS, *arguments)


@pytest.mark.parametrize(
    'error, code, words',
    [
        (NotFiniteError('the loss is nan at step 3'), 1, 'the loss is nan at step 3'),
        (Preempted('stopped by SIGTERM: saved', signal.SIGTERM), 42, 'stopped by SIGTERM: saved'),
        (Preempted('stopped by SIGHUP: saved', signal.SIGHUP), 42, 'stopped by SIGHUP: saved'),
        # The launchers do not start again what Ctrl-C has ended.
        (Preempted('stopped by SIGINT: saved', signal.SIGINT), 1, 'stopped by SIGINT: saved'),
        (
            jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.\n  stack'),
            2,
            'no memory left (RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.). Set a smaller '
            '--config.batch_size; or keep it and set --config.microbatch, --config.model.remat=1,2,3,4, ',
        ),
        (MemoryError('Unable to allocate 9 TiB'), 2, 'no memory left (Unable to allocate 9 TiB). Set a smaller'),
        (
            OSError(errno.ENOSPC, 'No space left on device', 'a'),
            2,
            'a: No space left on device. Make room on',
        ),
        (PermissionError(errno.EACCES, 'Permission denied', 'a'), 2, 'a: Permission denied. Allow this, or choose'),
    ],
)
def test_how_a_command_ends(capsys, monkeypatch, tmp_path, error, code, words):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(pretraining, 'pretrain', fail)
    assert main(['train', DIGITS, f'--workdir={tmp_path}']) == code
    told = capsys.readouterr().err
    assert words in told
    assert 'stack' not in told


def test_embed_names_its_own_option_where_memory_ends(capsys, monkeypatch, tmp_path):
    def fail(*arguments, **options):
        raise MemoryError('Unable to allocate 9 TiB')

    monkeypatch.setattr('simclr_jax.evaluation.extractor.open_extractor', fail)
    assert main(['embed', f'--workdir={tmp_path}', f'--out={tmp_path}/x.npz']) == 2
    option = capsys.readouterr().err.split('a smaller ')[1].split()[0]
    assert main(['embed', '--workdir=x', f'--out={tmp_path}/x.npz', f'{option}=-1']) == 2
    assert f'{option}=-1: must be 0 or more' in capsys.readouterr().err


@pytest.mark.parametrize('saved', [[], ['4', '12', '16.orbax-checkpoint-tmp']])
def test_a_signal_before_the_first_step_is_told_with_what_is_saved(capsys, monkeypatch, tmp_path, saved):
    for name in saved:
        (tmp_path / 'checkpoints' / name).mkdir(parents=True)
    monkeypatch.setattr(pretraining, 'pretrain', lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    handler = signal.getsignal(signal.SIGTERM)
    assert main(['train', DIGITS, f'--workdir={tmp_path}']) == 42
    assert signal.getsignal(signal.SIGTERM) == handler
    told = capsys.readouterr().err
    assert ('the newest checkpoint is of step 12, and the same command resumes there' in told) == bool(saved)
    assert ('no checkpoint is saved yet, so that the same command starts at step 0' in told) == (not saved)


def test_an_interrupted_packing_says_what_is_kept(tmp_path, monkeypatch, capsys):
    pytest.importorskip('tensorflow', reason='packing needs TensorFlow')
    monkeypatch.setattr('simclr_jax.cli.pack._open', lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert main(['pack', 'cifar10', f'--out={tmp_path}']) == 1
    assert 'stopped by SIGINT; complete shards are kept, and the same command goes on' in capsys.readouterr().err


def test_compiled_programs_are_kept_where_nothing_else_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
    monkeypatch.delenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert main(['evaluate', f'--workdir={tmp_path}/none']) == 2
    place = pathlib.Path(os.environ['JAX_COMPILATION_CACHE_DIR'])
    assert place.parent == tmp_path / 'simclr_jax'
    assert place.name.startswith('programs-')
    assert os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] == '0'
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', 'gs://mine')
    monkeypatch.delenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS')
    assert main(['evaluate', f'--workdir={tmp_path}/none']) == 2
    assert os.environ['JAX_COMPILATION_CACHE_DIR'] == 'gs://mine'
    assert 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ


def test_a_user_without_a_home_directory_keeps_no_programs(tmp_path, monkeypatch, mistake):
    """Containers run under numbers of users that no file names."""
    monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    monkeypatch.setattr(os.path, 'expanduser', lambda path: path)
    assert 'is not a work directory' in mistake('evaluate', f'--workdir={tmp_path}')
    assert 'JAX_COMPILATION_CACHE_DIR' not in os.environ
