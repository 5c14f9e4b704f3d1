"""Compiles the training step of ImageNet's configuration for TPUs, with this package's ResNet and with Flax's layers.

python benchmarks/tpu_step.py [--topology=v5e:4x8] [--batch-size=4096]

Prints one JSON line with the compiler's estimated cycles, the main memory's traffic and the temporaries per chip, and
the ratios of Flax's / ours. No TPU is needed. libtpu is installed in its own directory. Two cores take three to four
minutes for each network.
"""

import argparse
import json
import pathlib
import subprocess
import sys

import jax.numpy as jnp
from flax_resnet import FlaxResNet
from jax.experimental import topologies

from simclr_jax import networks
from simclr_jax.config import load_config
from simclr_jax.planning import libtpu
from simclr_jax.planning.compiling import compile_step
from simclr_jax.planning.topology import parse_topology

CONFIG = str(pathlib.Path(__file__).resolve().parent.parent / 'configs' / 'imagenet.py')
IMAGES, CLASSES = 1_281_167, 1000
NETWORKS = ('simclr_jax', 'flax')


def main():
    """Compiles both networks, each in a process that has libtpu."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--topology', default='v5e:4x8')
    parser.add_argument('--batch-size', type=int, default=4096)
    parser.add_argument(
        '--network', choices=NETWORKS, help='compile only this one, with the libtpu of this environment'
    )
    options = parser.parse_args()
    if options.network:
        print(json.dumps(compile_network(options.network, options.topology, options.batch_size)))
        return
    environment = libtpu.environment(libtpu.install(lambda line: print(line, file=sys.stderr)))
    figures = {}
    for network in NETWORKS:
        command = [sys.executable, __file__, *sys.argv[1:], f'--network={network}']
        printed = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
        figures[network] = json.loads(printed.strip().splitlines()[-1])
    ours, flax = (figures[network] for network in NETWORKS)
    ratios = {f'flax_over_our_{name}': round(flax[name] / ours[name], 3) for name in ours if name != 'compile_seconds'}
    print(json.dumps({'topology': options.topology, 'batch_size': options.batch_size, **figures, **ratios}))


def compile_network(network, topology, batch_size):
    """Compiles the step with one of the networks and returns the compiler's figures."""
    if network == 'flax':
        networks.make_encoder = lambda config: FlaxResNet(jnp.dtype(config.model.dtype))
    topology = parse_topology(topology)
    described = topologies.get_topology_desc(str(topology), 'tpu', **topology.compiler_options)
    # With views as floats from the host, the step is the network and the loss alone.
    config = load_config(CONFIG, [('data.feed', 'host'), ('batch_size', str(batch_size))])
    compiled = compile_step(config, CLASSES, IMAGES, list(described.devices))
    return {
        'cycles': compiled.cycles,
        'main_memory_bytes': compiled.memory_traffic,
        'temporaries_bytes': compiled.memory.temporaries,
        'compile_seconds': round(compiled.seconds),
    }


if __name__ == '__main__':
    main()
