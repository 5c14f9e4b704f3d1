"""Options of the command line: paths as users write them, and the right word in the place of a wrong one."""

import argparse
import difflib
from collections.abc import Callable, Iterable, Sequence


def path(text: str) -> str:
    """Type of an option that names a file or directory. It expands ~.

    Args:
        text: Text of the command line. '' stands for no file where the option has that default.

    Raises:
        argparse.ArgumentTypeError: There is no home directory to put in the place of ~.
    """
    from simclr_jax.config.paths import user_path

    return _of_type(user_path, text)


def needed_path(text: str) -> str:
    """Type of an option that must name a file or directory. It expands ~.

    Args:
        text: Text of the command line.

    Raises:
        argparse.ArgumentTypeError: The text is empty, or there is no home directory to put in the place of ~.
    """
    from simclr_jax.config.paths import directory_path

    return _of_type(directory_path, text)


def _of_type(read: Callable[[str], str], text: str) -> str:
    from simclr_jax.config import ConfigError

    try:
        return read(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def unknown_command(arguments: Sequence[str], commands: Sequence[str]) -> str:
    """The message about a command that does not exist, '' if there is none.

    Args:
        arguments: Arguments of the program.
        commands: Names of the commands.
    """
    given = next((argument for argument in arguments if not argument.startswith('-')), None)
    if given is None or given in commands:
        return ''
    return f'{given}: there is no such command{_question(given, commands)}; choose from {", ".join(commands)}'


def unknown_options(arguments: Iterable[str], known: Sequence[str], command: str) -> list[str]:
    """A message for each option that the command does not have, with the right one.

    Args:
        arguments: Arguments of the program, without those that set fields of a configuration.
        known: Options of the command.
        command: Name of the command.
    """
    problems = []
    for argument in arguments:
        name, equals, value = argument.partition('=')
        if not name.startswith('--') or name == '--' or name in known:
            continue
        fields = _fields(name.removeprefix('--').replace('-', '_'), command)
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
        candidates = [f'--config.{field}' for field in fields] or nearest
        hint = f'; did you mean {" or ".join(f"{word}{equals}{value}" for word in candidates)}?' if candidates else ''
        problems.append(f'{argument}: there is no such option{hint} (`simclr {command} --help` lists all)')
    return problems


def _fields(name: str, command: str) -> list[str]:
    """Fields of the command's configuration whose name, or the end of it, is this one."""
    if command not in ('train', 'evaluate', 'plan', 'config'):
        return []
    from simclr_jax.config import evaluation, pretraining

    fields = (evaluation if command == 'evaluate' else pretraining).FIELDS
    return [field.name for field in fields if name in (field.name, field.name.rpartition('.')[2])]


def _question(given: str, known: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    return f'; did you mean {nearest[0]}?' if nearest else ''
