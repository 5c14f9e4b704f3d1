"""Runs several commands of simclr in one process, which compiles their programs once.

python commands.py COMMANDS: see no_tensorflow.py, of which this is the counterpart with TensorFlow.
"""

import json
import sys

from no_tensorflow import run

from simclr_jax.cli.main import main

if __name__ == '__main__':
    print(json.dumps([run(main, arguments) for arguments in json.loads(sys.argv[1])]))
