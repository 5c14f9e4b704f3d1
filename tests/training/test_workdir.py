"""The work directory: whose it is, files that are whole or not there, metrics without a future."""

import pytest
from etils import epath

from simclr_jax.config import ConfigError, base_config, flatten
from simclr_jax.training import workdir
from simclr_jax.training.checkpoints import CheckpointError
from simclr_jax.training.log import Log


def changed_config(**fields):
    """base_config() with other values, '__' for the dots of a field's name."""
    config = base_config()
    config.update_from_flattened_dict({name.replace('__', '.'): value for name, value in fields.items()})
    return config


def test_a_fresh_directory_is_made_and_remembers_its_configuration(tmp_path):
    directory = tmp_path / 'runs' / 'first'
    assert workdir.claim(str(directory), base_config(), allow_change=False) == []
    assert flatten(workdir.read_config(str(directory))) == flatten(base_config())
    assert [path.name for path in directory.iterdir()] == ['config.json']


def test_the_same_configuration_may_come_again(tmp_path):
    for config in (base_config(), base_config(), changed_config(log_every_steps=7, knn__k=(5,))):
        assert workdir.claim(str(tmp_path), config, allow_change=False) == []
    assert workdir.read_config(str(tmp_path)).log_every_steps == 7


def test_another_configuration_is_refused_and_overwrites_nothing(tmp_path):
    workdir.claim(str(tmp_path), base_config(), allow_change=False)
    before = (tmp_path / 'config.json').read_bytes()
    other = changed_config(loss__temperature=0.5, batch_size=512, log_every_steps=7)
    with pytest.raises(ConfigError) as caught:
        workdir.claim(str(tmp_path), other, allow_change=False)
    message = str(caught.value)
    assert 'loss.temperature: 0.1 -> 0.5' in message
    assert 'batch_size: 4096 -> 512' in message
    assert 'log_every_steps' not in message
    assert '--allow-config-change' in message
    assert (tmp_path / 'config.json').read_bytes() == before


def test_another_configuration_is_accepted_where_allowed(tmp_path):
    workdir.claim(str(tmp_path), base_config(), allow_change=False)
    other = changed_config(loss__temperature=0.5)
    assert workdir.claim(str(tmp_path), other, allow_change=True) == ['loss.temperature: 0.1 -> 0.5']
    assert workdir.read_config(str(tmp_path)).loss.temperature == 0.5
    assert workdir.claim(str(tmp_path), other, allow_change=False) == []


@pytest.mark.parametrize('trace', ['checkpoints/8/model', 'damaged/4/model', 'metrics.jsonl'])
def test_what_a_run_left_without_its_configuration_is_refused(tmp_path, trace):
    (tmp_path / trace).mkdir(parents=True)
    before = sorted(tmp_path.rglob('*'))
    if trace == 'metrics.jsonl':
        (tmp_path / trace).rmdir()
        (tmp_path / trace).write_text('{"step": 4}')
    for allow_change in (False, True):
        with pytest.raises(
            ConfigError, match=rf'holds {trace.split("/")[0]} but no config\.json.* put its config\.json'
        ):
            workdir.claim(str(tmp_path), base_config(), allow_change=allow_change)
    assert sorted(tmp_path.rglob('*')) == before


def test_checking_writes_nothing(tmp_path):
    directory = tmp_path / 'run'
    assert workdir.check_claim(str(directory), base_config(), allow_change=False) == []
    assert not directory.exists()


def test_a_path_below_which_no_checkpoint_can_be_read_is_refused_before_it_is_made(tmp_path):
    with pytest.raises(CheckpointError, match=r'contains \['):
        workdir.check_claim(str(tmp_path / '[lr=0.1]'), base_config(), allow_change=False)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_checkpoints_is_refused_before_the_first_step(tmp_path):
    workdir.claim(str(tmp_path), base_config(), allow_change=False)
    (tmp_path / 'checkpoints').write_text('')
    with pytest.raises(ConfigError, match='checkpoints is a file; move it away, or choose another --workdir'):
        workdir.check_claim(str(tmp_path), base_config(), allow_change=False)


@pytest.mark.parametrize('damage', [b'', b'{"seed": 0, "batch_', b'\xff\xfe\x00', b'[1, 2]', b'null', b'{"sead": 0}'])
def test_a_damaged_configuration_is_told_and_left_alone(tmp_path, damage):
    path = tmp_path / 'config.json'
    path.write_bytes(damage)
    with pytest.raises(ConfigError, match=r'config\.json .*is damaged.*choose another --workdir'):
        workdir.claim(str(tmp_path), base_config(), allow_change=True)
    assert path.read_bytes() == damage


def test_a_directory_without_configuration_is_no_work_directory(tmp_path):
    with pytest.raises(ConfigError, match=r'is not a work directory.*simclr train'):
        workdir.read_config(str(tmp_path / 'absent'))


def test_places_that_cannot_be_used(tmp_path):
    (tmp_path / 'file').write_text('')
    (tmp_path / 'taken' / 'config.json').mkdir(parents=True)
    for name in ('file', 'file/below', 'taken', 'n' * 300):
        with pytest.raises(ConfigError, match=r'cannot be used: .*; choose another') as caught:
            workdir.claim(str(tmp_path / name), base_config(), allow_change=False)
        assert f'--workdir={tmp_path / name}' in str(caught.value)


@pytest.mark.parametrize('of_directory', [False, True])
def test_what_stands_in_the_place_is_set_aside(tmp_path, of_directory):
    path, said = epath.Path(tmp_path) / 'report', []
    for number in (1, 2):
        if of_directory:
            path.write_text('mine')
        else:
            path.mkdir()
        workdir.clear_place(path, said.append, of_directory=of_directory)
        assert not path.exists()
        assert len(said) == len(list(tmp_path.iterdir())) == number
    assert said[0].endswith('; it is report.damaged now.')
    workdir.clear_place(path, pytest.fail, of_directory=of_directory)


def test_a_log_without_work_directory_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    log = Log(None, total_steps=100)
    log.resume(0)
    log.progress(10, {'contrast_loss': 2.0, 'unknown': 1.0}, seconds_left=61.0)
    log.close()
    assert capsys.readouterr().out == 'step 10/100  loss 2.0000  left 0:01:01\n'
    assert list(tmp_path.iterdir()) == []
