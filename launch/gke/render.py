"""Prints the manifest of a job, made from the template jobset.yaml.

Usage: python render.py [--spot] name=run image=... ... -- ARGUMENTS OF SIMCLR

The program needs only the standard library.
"""

import json
import pathlib
import string
import sys

TEMPLATE = pathlib.Path(__file__).with_name('jobset.yaml')
NUMBERS = ('hosts', 'slices', 'chips_per_host', 'restarts')
SPOT_ONLY = '  # with --spot only'


def main(arguments: list[str]) -> str:
    """Makes the manifest of a job.

    Args:
        arguments: Settings NAME=VALUE for the names in the template, and after '--' the arguments of `simclr`.

    Returns:
        The manifest in YAML.
    """
    end = arguments.index('--')
    settings = dict(argument.split('=', 1) for argument in arguments[:end] if argument != '--spot')
    values = {name: value if name in NUMBERS else _yaml(value) for name, value in settings.items()}
    # Kubernetes replaces $(NAME) in arguments. It reads $$ as a plain $.
    values['arguments'] = _yaml([argument.replace('$', '$$') for argument in arguments[end + 1 :]])
    return string.Template(_lines('--spot' in arguments[:end])).substitute(values)


def _yaml(value: str | list[str]) -> str:
    # JSON text is also YAML, except for pairs of \\u escapes. So no character is escaped.
    return json.dumps(value, ensure_ascii=False)


def _lines(spot: bool) -> str:
    lines = TEMPLATE.read_text().splitlines()
    return '\n'.join(line.removesuffix(SPOT_ONLY) for line in lines if spot or not line.endswith(SPOT_ONLY))


if __name__ == '__main__':
    print(main(sys.argv[1:]))
