"""Compiles the devices' part of the augmentation for a TPU, for the feeds that have one.

python benchmarks/views_tpu.py [--feeds hybrid decoded] [--images 128] [--canvas 0]

Prints one JSON line per feed: the compiler's estimated cycles, the main memory's traffic and the temporaries of one
chip for this number of images, two 224-pixel views of each. No TPU is needed. libtpu is installed in its own directory.
"""

import argparse
import json
import subprocess
import sys

import jax
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from simclr_jax import sharding
from simclr_jax.config import base_config
from simclr_jax.data.feed import plan_feed
from simclr_jax.planning import libtpu
from simclr_jax.planning.hlo import Hlo
from simclr_jax.planning.topology import parse_topology


def main():
    """Compiles each feed in a process that has libtpu."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--feeds', nargs='+', default=['hybrid', 'decoded'])
    parser.add_argument('--images', type=int, default=128, help='images of one chip')
    parser.add_argument('--canvas', type=int, default=0, help='data.canvas')
    parser.add_argument('--here', action='store_true', help='compile with the libtpu of this environment')
    options = parser.parse_args()
    if not options.here:
        environment = libtpu.environment(libtpu.install(lambda line: print(line, file=sys.stderr)))
        subprocess.run([sys.executable, __file__, *sys.argv[1:], '--here'], env=environment, check=True)
        return
    topology = parse_topology('v5e:2x2')
    devices = topologies.get_topology_desc(str(topology), 'tpu', **topology.compiler_options).devices
    for feed in options.feeds:
        print(json.dumps({'feed': feed, **figures(feed, options, list(devices)[:1])}), flush=True)


def figures(feed, options, devices):
    """The compiler's figures for the views of one feed."""
    config = base_config()
    config.data.feed, config.batch_size, config.data.canvas = feed, options.images, options.canvas
    mesh = sharding.make_mesh(devices)
    planned = plan_feed(config, mesh)
    batch = sharding.placed(planned.batch, sharding.by_rows(mesh))
    key = sharding.placed(jax.eval_shape(lambda: jax.random.key(0)), NamedSharding(mesh, PartitionSpec()))
    compiled = jax.jit(planned.make_views).lower(batch, key).compile()
    hlo = Hlo(compiled.as_text())
    fusions, memory = hlo.fusions(), compiled.memory_analysis()
    return {
        'cycles': sum(fusion.cycles * fusion.times for fusion in fusions),
        'main_memory_bytes': hlo.main_memory_traffic(),
        'temporaries_bytes': memory.temp_size_in_bytes,
        'batch_bytes': memory.argument_size_in_bytes,
        'costliest': [f'{fusion.cycles * fusion.times:,} {fusion.source}' for fusion in fusions[:6]],
    }


if __name__ == '__main__':
    main()
