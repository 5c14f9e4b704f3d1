"""Output that nobody reads, on a full disk, closed, or in ASCII never ends a command."""

import os
import subprocess
import sys

import pytest

from simclr_jax.cli import main as program
from simclr_jax.cli.main import main
from support.paths import REPOSITORY

# A command that writes a file, prints before and after it, and is told that nobody reads.
COMMAND = """
import sys
from simclr_jax.cli.streams import steady
with steady() as output:
    output.sentence = 'All is in the file.'
    for number in range(3):
        print('line', number, 'of \\xb1 1\\u2026 caf\\udce9 \\u5199', flush=True)
    open(sys.argv[1], 'w').write('done')
    print('the end')
print(output.error and output.error.errno, file=sys.stderr)
"""


def run(arguments, **options):
    return subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, check=False, **options
    )


@pytest.fixture
def no_reader():
    """A pipe whose other end is closed."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


def test_a_command_goes_on_when_nobody_reads(no_reader, tmp_path):
    done = run(['-c', COMMAND, str(tmp_path / 'x')], stdout=no_reader)
    assert done.stderr == 'simclr: the output is lost (Broken pipe). All is in the file.\n32\n'
    assert (tmp_path / 'x').read_text() == 'done'
    assert done.returncode == 0


def test_a_full_disk_behind_the_output_does_not_end_a_command(tmp_path):
    with open('/dev/full', 'w') as full:
        done = run(['-c', COMMAND, str(tmp_path / 'x')], stdout=full)
    assert done.stderr == 'simclr: the output is lost (No space left on device). All is in the file.\n28\n'
    assert done.returncode == 0


def test_neither_stream_is_needed(tmp_path):
    shell = f'exec {sys.executable} -c "$0" "$1" >&- 2>&-'
    done = subprocess.run(['/bin/sh', '-c', shell, COMMAND, str(tmp_path / 'x')], cwd=REPOSITORY, check=False)
    assert done.returncode == 0
    assert (tmp_path / 'x').read_text() == 'done'


def test_ascii_takes_every_sign(tmp_path):
    environment = {**os.environ, 'PYTHONIOENCODING': 'ascii', 'PYTHONUTF8': '0', 'LC_ALL': 'C'}
    done = run(['-c', COMMAND, str(tmp_path / 'x')], stdout=subprocess.PIPE, env=environment)
    assert done.stdout.splitlines()[0] == r'line 0 of +- 1... caf\udce9 \u5199'
    assert done.stdout.splitlines()[-1] == 'the end'
    assert done.stderr == 'None\n'


def test_a_full_disk_is_a_mistake_where_the_output_is_all_there_is():
    with open('/dev/full', 'w') as full:
        done = run(['-m', 'simclr_jax', 'config'], stdout=full)
    assert (done.returncode, done.stderr) == (2, 'simclr: the output cannot be written: No space left on device\n')


def test_each_command_says_where_its_results_are(monkeypatch):
    sentences = {}

    def keep(options):
        sentences[options.command] = program_output[-1].sentence
        return 0

    program_output = []
    inner = program._main
    monkeypatch.setattr(
        program, '_main', lambda arguments, output: program_output.append(output) or inner(arguments, output)
    )
    monkeypatch.setattr(program, '_run', keep)
    main(['train', '--config=x', '--workdir=runs/x'])
    main(['evaluate', '--workdir=runs/x'])
    main(['embed', '--workdir=runs/x', '--out=x.npz'])
    assert 'runs/x/metrics.jsonl' in sentences['train']
    assert 'runs/x/result.json' in sentences['evaluate']
    assert 'x.npz' in sentences['embed']
    main(['evaluate', '--compare', 'runs/x'])
    assert sentences['evaluate'] == ''
