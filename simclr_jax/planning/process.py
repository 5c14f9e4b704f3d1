"""Compiles for TPUs in a separate process, because only such a process sees libtpu.

`compile_for` starts this module as a program, sends it a request and reads its answer.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import IO

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
    # libtpu writes messages to both output streams, so the answer goes to a file. It has no name, so that it is gone
    # with the last process that holds it.
    with tempfile.TemporaryFile('w+') as answer, tempfile.TemporaryFile('w+') as messages:
        process = subprocess.Popen(
            [sys.executable, '-m', __name__, str(answer.fileno())],
            env=environment,
            stdin=subprocess.PIPE,
            bufsize=0,
            stdout=subprocess.DEVNULL,
            stderr=messages,
            pass_fds=(answer.fileno(),),
        )
        # The input stays open during the compilation. The end of this process closes it, and so ends the other one.
        with process:
            _send(request, process)
            code = process.wait()
        found = _read(answer)
        if code or not found:
            last = '\n'.join(_read(messages).splitlines()[-20:])
            raise RuntimeError(f'compiling for {topology} ended with exit code {code}:\n{last}')
    found = json.loads(found)
    if 'problems' in found:
        raise ConfigError(found['problems'])
    return _from_dict(found)


def _send(request: dict, process: subprocess.Popen[bytes]) -> None:
    assert process.stdin
    # The process may already have ended. Then its exit code and messages say why.
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(request).encode() + b'\n')


def _read(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


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


def _end_with_the_other_process() -> None:
    # A read of sys.stdin would hold its lock, which the interpreter needs at its end.
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


if __name__ == '__main__':
    asked = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_other_process, daemon=True).start()
    with open(int(sys.argv[1]), 'w') as file:
        json.dump(_answer(asked), file)
