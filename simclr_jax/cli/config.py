"""Print the fields of a configuration: value, default, meaning and accepted values of each.

Examples:
  simclr config                                          # defaults of a pretraining
  simclr config --config=configs/cifar10.py:r18
  simclr config --config=configs/digits.py --config.batch_size=32 batch learning_rate
  simclr config --evaluation knn

Words choose the fields that contain one of them in their name or meaning. A configuration file is Python code and is
executed, so use only files that you trust.
"""

import argparse
import shutil
import textwrap

NAME = 'config'
SUMMARY = 'print all fields of a configuration, with their meaning'
# Columns of the text, if the terminal is not narrower.
_WIDTH = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    parser.add_argument(
        '--config', default='', metavar='FILE[:ARG]', help='configuration file, such as configs/cifar10.py:r18'
    )
    parser.add_argument('--evaluation', action='store_true', help='fields of `simclr evaluate` instead of train')
    parser.add_argument('words', nargs='*', metavar='WORD', help='part of the name or meaning of the fields to print')


def run(options: argparse.Namespace) -> int:
    """Prints the fields. Returns the exit code."""
    from simclr_jax.config import ConfigError, evaluation, fields, flatten, pretraining, schema

    kind = evaluation.SCHEMA if options.evaluation else pretraining.SCHEMA
    if options.config:
        config = schema.load(kind, options.config, options.overrides)
    else:
        config = schema.override(kind, fields.defaults(kind.fields), options.overrides)
    values = flatten(config)
    words = [word.casefold() for word in options.words]
    chosen = [
        field
        for field in kind.fields
        if not words or any(word in f'{field.name} {field.meaning}'.casefold() for word in words)
    ]
    if not chosen:
        raise ConfigError([f'{" ".join(options.words)}: no field has this in its name or meaning; try another word'])
    print('\n\n'.join(_told(field, values[field.name]) for field in chosen))
    return 0


def _told(field, value) -> str:
    """A field in a few lines."""
    default = '' if value == field.default else f' (default: {_written(field.default)})'
    width = min(shutil.get_terminal_size((_WIDTH, 1)).columns, _WIDTH)
    text = (
        textwrap.fill(line, width, initial_indent='    ', subsequent_indent='    ', break_on_hyphens=False)
        for line in (field.meaning, f'Accepts: {field.accepts}')
    )
    return '\n'.join([f'{field.name} = {_written(value)}{default}', *text])


def _written(value) -> str:
    """A value as the command line takes it."""
    if not isinstance(value, tuple):
        return f"'{value}'" if value == '' else str(value)
    return ','.join(f'"{member}"' if ',' in str(member) or member == '' else str(member) for member in value) or '()'
