"""Slices: what can be asked for, and facts of chips against those that JAX itself knows."""

import pytest

from simclr_jax.config import ConfigError
from simclr_jax.planning.topology import CHIPS, parse_topology


@pytest.mark.parametrize(
    'text, chips, hosts, links',
    [
        ('v5e:1x1', 1, 1, 0),
        ('v5e:2x2', 4, 1, 2),  # the corner of a square
        ('v5e:4x8', 32, 8, 2),
        ('v5e:8x16', 128, 32, 3),  # a ring along the 16
        ('v6e:16x16', 256, 64, 4),  # a torus
        ('v4:2x2x1', 4, 1, 2),  # the third side has no neighbours
        ('v4:2x4x4', 32, 8, 3),
        ('v5p:4x4x8', 128, 32, 6),  # cubes make a torus
    ],
)
def test_slices(text, chips, hosts, links):
    topology = parse_topology(text)
    assert (str(topology), topology.num_chips, topology.num_hosts, topology.links) == (text, chips, hosts, links)


@pytest.mark.parametrize(
    'text, words',
    [
        ('v9:2x2', "unknown chip 'v9'; choose from v4, v5e, v5p, v6e"),
        ('4x8', "unknown chip '4x8'"),
        ('v5e', 'a v5e slice has 2 sides, for example v5e:4x8'),
        ('v5e:4x', 'has 2 sides'),
        ('v5e:2x2x2', 'has 2 sides'),
        ('v4:4x8', 'a v4 slice has 3 sides, for example v4:2x4x4'),
        ('v5e:3x3', 'no such slice is offered; choose from 1x1, 2x2'),
        ('v5e:32x32', 'no such slice is offered'),
        ('v4:4x4x2', 'in ascending order'),
        ('v4:0x0x0', 'no such slice is offered'),
        ('v4:16x16x20', 'up to 4,096 chips'),
    ],
)
def test_what_is_no_slice(text, words):
    with pytest.raises(ConfigError, match=words) as error:
        parse_topology(text)
    assert f'--topology={text}' in str(error.value)


@pytest.mark.parametrize('name', CHIPS)
def test_chips_agree_with_jax(name):
    # JAX's own table for kernels speaks of one core, in rounded and partly other figures (v5p: 2.46 TB/s).
    from jax.experimental.pallas import tpu

    chip = CHIPS[name]
    known = tpu.get_tpu_info_for_chip(tpu.ChipVersion(name), chip.cores)
    assert chip.cores == tpu.ChipVersion(name).num_physical_tensor_cores_per_chip
    assert chip.peak_flops == pytest.approx(known.bf16_ops_per_second * chip.cores, rel=0.01)
    assert chip.memory_bandwidth == pytest.approx(known.mem_bw_bytes_per_second * chip.cores, rel=0.15)
    assert chip.memory_bytes == pytest.approx(known.hbm_capacity_bytes * chip.cores, rel=0.05)
    # Operations a cycle are a power of two; v6e's units do twice what their size says.
    operations = 2 * known.num_mxus * known.mxu_column_size**2 * chip.cores * (2 if name == 'v6e' else 1)
    assert chip.peak_flops == pytest.approx(operations * chip.clock, rel=0.01)
