"""Runs several commands of simclr in one process in which TensorFlow is not installed.

python no_tensorflow.py COMMANDS: a JSON list of argument lists. The output is a JSON list of {'code', 'out', 'err'}.
"""

import contextlib
import io
import json
import sys

BLOCKED = {'tensorflow', 'tensorflow_datasets', 'clu'}


class Without:
    """A finder of modules that does not find the blocked packages. An absent package looks like this to everyone."""

    def __init__(self, finder):
        self._finder = finder

    def __getattr__(self, name):
        return getattr(self._finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition('.')[0] in BLOCKED else self._finder.find_spec(name, path, target)


def run(main, arguments):
    """What one command prints, and its exit code."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    return {'code': code, 'out': out.getvalue(), 'err': err.getvalue()}


if __name__ == '__main__':
    sys.meta_path[:] = map(Without, sys.meta_path)
    from simclr_jax.cli.main import main

    print(json.dumps([run(main, arguments) for arguments in json.loads(sys.argv[1])]))
