"""Entry point of the program: selects the command, and prints mistakes of the user as messages.

The commands import JAX and TensorFlow only when they run, so that --help answers at once.
"""

import argparse
import collections
import contextlib
import errno
import os
import signal
import sys
from collections.abc import Sequence

import simclr_jax
from simclr_jax import cache
from simclr_jax.cli import config, convert, embed, evaluate, export, pack, plan, third_parties, train
from simclr_jax.cli.options import unknown_command, unknown_options
from simclr_jax.cli.stopping import Interrupted, Watch, code_of
from simclr_jax.cli.streams import Output, steady
from simclr_jax.exits import FAILURE, START_AGAIN, USER_MISTAKE

# What the user can do about an error of the file system.
CURES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), 'Make room on the disk'),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), 'Allow this, or choose another place'),
    **dict.fromkeys((errno.EEXIST, errno.EISDIR, errno.ENOTDIR), 'Move away what has this name'),
}
# What the user has where the output is lost, for each command that writes files.
_WITHOUT_OUTPUT = {
    'train': 'The training goes on, and its metrics are in {0.workdir}/metrics.jsonl',
    'evaluate': 'The evaluation goes on, and its scores are in {0.workdir}/result.json',
    **dict.fromkeys(('embed', 'pack', 'convert', 'export'), 'The command goes on and writes {0.out}'),
}
# What the user can do about memory, for each command.
_LESS_MEMORY = {
    **dict.fromkeys(('evaluate', 'plan', 'config'), 'a smaller --config.batch_size'),
    'embed': 'a smaller --batch-size',
    'pack': 'smaller images, or a machine with more memory',
    **dict.fromkeys(('convert', 'export'), 'a machine with more memory'),
    'train': 'a smaller --config.batch_size; or keep it and set --config.microbatch, --config.model.remat=1,2,3,4, '
    '--config.loss.block_size or --config.sharding=fsdp. `simclr plan` tells for a TPU what fits',
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `simclr ARGUMENTS`.

    Args:
        arguments: Arguments of the program. None: those of the command line.

    Returns:
        The exit code: 0 done, 2 mistake of the user, 42 preempted (start again), 1 Ctrl-C or any other failure.
    """
    with steady() as output:
        code = _main(list(sys.argv[1:] if arguments is None else arguments), output)
        sys.stdout.flush()
    if output.error and output.error.errno != errno.EPIPE and not output.sentence:
        return _tell(f'the output cannot be written: {output.error.strerror}', code or USER_MISTAKE)
    return code


def _main(arguments: list[str], output: Output) -> int:
    parser, commands = _parser()
    rest, overrides, problems = _split_overrides(arguments)
    command = next((argument for argument in rest if not argument.startswith('-')), '')
    wrong = unknown_command(rest, tuple(commands))
    unknown = [wrong] if wrong else unknown_options(rest, commands[command], command) if command else []
    if unknown:
        return _tell('\n'.join(unknown), USER_MISTAKE)
    options = parser.parse_args(rest)
    if overrides and options.command not in ('train', 'evaluate', 'plan', 'config'):
        problems.append(
            f'--config.{overrides[0][0]}: `simclr {options.command}` takes no configuration overrides; '
            'leave this option out'
        )
    if problems:
        return _tell('\n'.join(problems), USER_MISTAKE)
    options.overrides = overrides
    if not getattr(options, 'compare', None):
        output.sentence = _WITHOUT_OUTPUT.get(options.command, '').format(options)
    try:
        with Watch(lambda number: _interruption(options, number)):
            return _run(options)
    except Interrupted as error:
        _tell(_interruption(options, error.number), code_of(error.number))
        return _leave_alone(code_of(error.number))


def _parser() -> tuple[argparse.ArgumentParser, dict[str, list[str]]]:
    """The parser, and the options of each command."""
    parser = argparse.ArgumentParser(
        prog='simclr',
        description='SimCLR: contrastive pretraining of image encoders, and their evaluation.',
        allow_abbrev=False,
    )
    parser.add_argument('--version', action='version', version=f'simclr_jax {simclr_jax.__version__}')
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    known = {}
    for module in (train, evaluate, embed, pack, convert, export, plan, config):
        command = commands.add_parser(
            module.NAME,
            help=module.SUMMARY,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
        known[module.NAME] = [name for action in command._actions for name in action.option_strings]
    return parser, known


def _split_overrides(arguments: list[str]) -> tuple[list[str], list[tuple[str, str]], list[str]]:
    """Splits arguments into the other ones, the overrides (--config.key=value or --config.key value) and messages."""
    rest, overrides, problems = [], [], []
    remaining = collections.deque(arguments)
    while remaining:
        argument = remaining.popleft()
        if not argument.startswith('--config.'):
            rest.append(argument)
            continue
        name, equals, value = argument.removeprefix('--config.').partition('=')
        if not equals and (not remaining or remaining[0].startswith('--')):
            problems.append(f'{argument}: needs a value; write {argument}=VALUE')
        else:
            overrides.append((name, value if equals else remaining.popleft()))
    return rest, overrides, problems


def _run(options: argparse.Namespace) -> int:
    third_parties.quiet()
    _keep_compiled_programs()
    from simclr_jax.config import ConfigError
    from simclr_jax.config.storage import first_line, storage_errors
    from simclr_jax.data.spec import DataError
    from simclr_jax.distributed import FailedElsewhere, LostError
    from simclr_jax.training.checkpoints import CheckpointError
    from simclr_jax.training.meter import NotFiniteError

    try:
        return _run_to_the_end(options)
    except (ConfigError, DataError, CheckpointError) as error:
        return _tell(str(error), USER_MISTAKE)
    except FailedElsewhere:
        return USER_MISTAKE
    except NotFiniteError as error:
        return _tell(str(error), FAILURE)
    except LostError as error:
        return _tell(str(error), START_AGAIN)
    except OSError as error:
        if error.errno not in CURES:
            raise
        what = f'{error.filename}: ' if error.filename else ''
        return _tell(f'{what}{error.strerror}. {CURES[error.errno]}; the same command then resumes', USER_MISTAKE)
    except storage_errors() as error:
        return _tell(
            f'the storage refuses or does not answer: {first_line(error)}. Later the same command resumes', FAILURE
        )
    except MemoryError as error:
        return _tell(f'this machine has no memory left ({error}). Set {_LESS_MEMORY[options.command]}', USER_MISTAKE)


def _run_to_the_end(options: argparse.Namespace) -> int:
    """Runs the command and ends together with the other processes of the job, or alone if they are lost."""
    import jax

    from simclr_jax import distributed
    from simclr_jax.training.loop import Preempted

    try:
        try:
            code = options.run(options) or 0
        except Preempted as error:
            code = code_of(error.number)
            if distributed.is_first():
                _tell(str(error), code)
        distributed.leave_together()
        return code
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' in str(error):
            return _tell(
                f'the devices have no memory left ({str(error).splitlines()[0]:.200}). '
                f'Set {_LESS_MEMORY[options.command]}',
                USER_MISTAKE,
            )
        if not distributed.tells_of_a_loss(error):
            raise
        distributed.end_for_a_loss()


def _interruption(options: argparse.Namespace, number: signal.Signals) -> str:
    """What a signal has ended, and what is kept."""
    if options.command == 'evaluate':
        return f'stopped by {number.name}; finished scores are in result.json, and trainings resume where they saved'
    if options.command == 'pack':
        return f'stopped by {number.name}; complete shards are kept, and the same command goes on'
    if options.command != 'train':
        return f'stopped by {number.name}'
    saved = []
    with contextlib.suppress(OSError):
        from etils import epath

        names = [path.name for path in (epath.Path(options.workdir) / 'checkpoints').iterdir()]
        saved = [int(name) for name in names if name.isdecimal()]
    if not saved:
        return f'stopped by {number.name}; no checkpoint is saved yet, so that the same command starts at step 0'
    return (
        f'stopped by {number.name}; the newest checkpoint is of step {max(saved)}, and the same command resumes there'
    )


def _leave_alone(code: int) -> int:
    """Ends this process without its job, if there is one: an orderly end would wait for the others."""
    if 'jax' in sys.modules and sys.modules['jax'].distributed.is_initialized():
        os._exit(code)
    return code


def _keep_compiled_programs() -> None:
    """Keeps compiled programs on disk for the next start. To be called before JAX is imported.

    JAX_ENABLE_COMPILATION_CACHE=false switches the cache off.
    """
    programs = cache.programs()
    if programs and 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
        os.environ['JAX_COMPILATION_CACHE_DIR'] = str(programs)
        # The cache also keeps the hundreds of small programs. Reading one from a local disk is faster than compiling.
        os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')


def _tell(message: str, code: int) -> int:
    first, *others = message.splitlines()
    text = '\n'.join([f'simclr: {first}', *(f'        {line}' for line in others)])
    print(text, file=sys.stderr, flush=True)
    return code
