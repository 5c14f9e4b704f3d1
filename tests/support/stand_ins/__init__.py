"""Stand-ins for the tools of clusters, and a checkout for the launchers to launch from.

The tools (gcloud, kubectl, sbatch, srun, scontrol, and what a host of a TPU slice has) are small programs in this
directory. They accept only the options that the launchers may use, and record their calls in $STAND_INS. What they are
asked to run they really run, on this machine. In place of simclr they run program.py.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
HERE = pathlib.Path(__file__).resolve().parent
BASH = shutil.which('bash')

# Prefixes of variables that the launchers, JAX or Python read. The tests set these variables themselves.
FOREIGN = ('SIMCLR_', 'JAX_', 'SLURM_', 'SBATCH_', 'PYTHON')

# Arguments that every launcher must pass on unchanged.
AWKWARD = [
    'train',
    '--workdir=gs://bucket/my runs',
    "it's",
    '"quoted"',
    '$HOME',
    '$(id)',
    '$$',
    '`id`',
    'a;b&c|d>e',
    '*',
    '~',
    '',
    'two  spaces',
    'two\nlines\n',
    'back\\slash\\n',
    '-x',
    'ü#!',
]


def executable(path: pathlib.Path, body: str) -> pathlib.Path:
    """A bash script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!{BASH}\n{body}\n')
    path.chmod(0o755)
    return path


def checkout(folder: pathlib.Path) -> pathlib.Path:
    """A git repository with the files that launchers read and a finished environment. Its simclr is program.py."""
    root = folder / 'my simclr'
    root.mkdir()
    shutil.copytree(REPOSITORY / 'launch', root / 'launch')
    shutil.copytree(REPOSITORY / 'constraints', root / 'constraints')
    shutil.copy(REPOSITORY / 'setup.py', root)
    for command in (['init', '--quiet'], ['add', '--all']):
        subprocess.run(['git', '-C', root, *command], check=True)
    install(root / '.venv')
    sums = subprocess.run(
        [BASH, '-c', 'cat setup.py constraints/*.txt | cksum'], cwd=root, capture_output=True, check=True
    )
    (root / '.venv' / 'installed').write_bytes(sums.stdout + b'tensorflow cuda12\n')
    return root


def install(environment: pathlib.Path) -> None:
    """Puts simclr and Python into an environment."""
    executable(environment / 'bin' / 'python', f'exec {sys.executable} -S "$@"')
    executable(environment / 'bin' / 'simclr', f'exec {sys.executable} -S {HERE}/program.py "$@"')


class World:
    """The state of the stand-ins ($STAND_INS), and the environment in which the launchers find them."""

    def __init__(self, folder: pathlib.Path, *tools: str):
        self.state = folder / 'world'
        self.state.mkdir()
        for tool in tools:
            # Without site-packages (-S), Python starts in half the time; kubectl needs them.
            flags = '' if tool == 'kubectl' else '-S'
            executable(self.state / 'bin' / tool, f'exec {sys.executable} {flags} {HERE}/{tool} "$@"')
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)},
            'PATH': f'{self.state}/bin:{os.environ["PATH"]}',
            'STAND_INS': str(self.state),
            'TMPDIR': str(folder),
            'SIMCLR_PAUSE': '0',
            'SIMCLR_PYTHON': sys.executable,
        }

    def plan(self, **lives: list) -> None:
        """Sets what the program does, per process and run: plan(p0=['preempt', 0]). Without a plan it ends with 0."""
        (self.state / 'plan.json').write_text(json.dumps(lives))

    def run(self, script: pathlib.Path, *arguments: str, timeout: float = 180, **variables: str):
        """Runs a launcher to its end."""
        return subprocess.run(
            [script, *arguments],
            env={**self.environment, **variables},
            cwd=self.state,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def start(self, *command: str | pathlib.Path) -> subprocess.Popen:
        """Starts a launcher in the background, so that a test can send it signals. For use in a `with` statement."""
        return subprocess.Popen(
            command,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.state,
        )

    def records(self, name: str) -> list:
        """The entries of one record of the stand-ins: `calls` of the tools, or `runs` of the program."""
        path = self.state / f'{name}.jsonl'
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def record(name: str, entry) -> None:
    """Adds an entry to a record in $STAND_INS."""
    with open(pathlib.Path(os.environ['STAND_INS'], f'{name}.jsonl'), 'a') as file:
        file.write(json.dumps(entry) + '\n')
