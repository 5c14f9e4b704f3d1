"""Prints the manifest of a job, made from the template jobset.yaml.

Usage: python render.py [--spot] [--label A=B] [--node-selector A=B] [--env A=B] name=run image=... ... -- ARGUMENTS

The program needs only the standard library.
"""

import argparse
import json
import pathlib
import re
import string
import sys

TEMPLATE = pathlib.Path(__file__).with_name('jobset.yaml')
NUMBERS = ('hosts', 'slices', 'chips_per_host', 'restarts')
# A line with such a comment stays only if the option is given.
ONLY_WITH = re.compile(r'(.*)  # with --([a-z-]+) only')


def main(arguments: list[str]) -> str:
    """Makes the manifest of a job.

    Args:
        arguments: Options, settings NAME=VALUE for the names in the template, and after '--' the arguments of `simclr`.

    Returns:
        The manifest in YAML.
    """
    end = arguments.index('--')
    options = _parse(arguments[:end])
    settings = dict(setting.split('=', 1) for setting in options.settings)
    values = {name: value if name in NUMBERS else _yaml(value) for name, value in settings.items()}
    values['arguments'] = _yaml([_literal(argument) for argument in arguments[end + 1 :]])
    values['labels'] = _yaml(_pairs(options.label))
    selectors = [f'{_yaml(name)}: {_yaml(value)}' for name, value in _pairs(options.node_selector).items()]
    values['node_selectors'] = '\n                '.join(selectors)
    values['variables'] = _yaml(
        [{'name': name, 'value': _literal(value)} for name, value in _pairs(options.env).items()]
    )
    given = {name.replace('_', '-') for name, value in vars(options).items() if value}
    return string.Template(_lines(given)).substitute(values)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument('--spot', action='store_true')
    for name in ('--label', '--node-selector', '--env'):
        parser.add_argument(name, action='append', default=[])
    parser.add_argument('settings', nargs='+')
    return parser.parse_args(arguments)


def _pairs(texts: list[str]) -> dict[str, str]:
    return dict(text.split('=', 1) for text in texts)


def _literal(text: str) -> str:
    # Kubernetes replaces $(NAME) in arguments and in variables. It reads $$ as a plain $.
    return text.replace('$', '$$')


def _yaml(value: object) -> str:
    # JSON text is also YAML, except for pairs of \u escapes. So no character is escaped.
    return json.dumps(value, ensure_ascii=False)


def _lines(given: set[str]) -> str:
    lines = []
    for line in TEMPLATE.read_text().splitlines():
        optional = ONLY_WITH.fullmatch(line)
        if not optional:
            lines.append(line)
        elif optional[2] in given:
            lines.append(optional[1])
    return '\n'.join(lines)


if __name__ == '__main__':
    print(main(sys.argv[1:]))
