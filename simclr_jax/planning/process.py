"""Compiles for TPUs in a separate process, because only such a process sees libtpu.

`compile_for` starts this module as a program, sends it a request and reads its answer.
"""

import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable

from ml_collections import ConfigDict

from simclr_jax.config import ConfigError, from_json, to_json
from simclr_jax.planning import libtpu
from simclr_jax.planning.compiling import Compiled, Memory, compile_step
from simclr_jax.planning.hlo import Collective, Fusion
from simclr_jax.planning.topology import Topology, parse_topology


def compile_for(
    topology: Topology, config: ConfigDict, num_classes: int, num_images: int, say: Callable[[str], None]
) -> Compiled:
    """Compiles the training step for a TPU slice.

    Args:
        topology: The slice.
        config: See `compile_step`.
        num_classes: See `compile_step`.
        num_images: See `compile_step`.
        say: Prints a message before a download.

    Returns:
        The facts about the compiled step.

    Raises:
        ConfigError: The configuration does not fit the slice, or libtpu cannot be installed.
        RuntimeError: The compiler failed.
    """
    environment = libtpu.environment(libtpu.install(say))
    request = {
        'topology': str(topology),
        'config': to_json(config),
        'num_classes': num_classes,
        'num_images': num_images,
    }
    with tempfile.TemporaryDirectory(prefix='simclr-plan-') as directory:
        answer = pathlib.Path(directory) / 'answer.json'
        # libtpu writes messages to both output streams, so the answer goes to a file.
        done = subprocess.run(
            [sys.executable, '-m', __name__, str(answer)],
            input=json.dumps(request),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or not answer.exists():
            last = '\n'.join(done.stderr.splitlines()[-20:])
            raise RuntimeError(f'compiling for {topology} ended with exit code {done.returncode}:\n{last}')
        found = json.loads(answer.read_text())
    if 'problems' in found:
        raise ConfigError(found['problems'])
    return _from_dict(found)


def _from_dict(fields: dict) -> Compiled:
    memory = fields.pop('memory')
    collectives = tuple(Collective(**collective) for collective in fields.pop('collectives'))
    fusions = tuple(Fusion(**fusion) for fusion in fields.pop('fusions'))
    return Compiled(**fields, memory=memory and Memory(**memory), collectives=collectives, fusions=fusions)


def _answer(request: dict) -> dict:
    from jax.experimental import topologies

    topology = parse_topology(request['topology'])
    described = topologies.get_topology_desc(str(topology), 'tpu', **topology.compiler_options)
    config = from_json(request['config'])
    try:
        compiled = compile_step(config, request['num_classes'], request['num_images'], list(described.devices))
    except ConfigError as error:
        return {'problems': error.problems}
    return dataclasses.asdict(compiled)


if __name__ == '__main__':
    pathlib.Path(sys.argv[1]).write_text(json.dumps(_answer(json.load(sys.stdin))))
