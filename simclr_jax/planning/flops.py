"""Counts the operations of convolutions and matrix products in a traced program, before a compiler changes it."""

import math
from typing import Any

import jax
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax.build import make_program, make_schedule
from simclr_jax.chips import peak_flops
from simclr_jax.config import with_values
from simclr_jax.data.feed import plan_feed
from simclr_jax.networks import Teacher
from simclr_jax.ops import batch_statistics, winograd

# Scopes of operations that do not belong to the network, but to the way in which it is computed.
UNCOUNTED = batch_statistics.STATISTICS_SCOPE, winograd.SCOPE


def count_flops(jaxpr: Jaxpr) -> int:
    """Counts multiplications and additions of all convolutions and matrix products, over all devices.

    * Loops count as often as they run. A `while` loop counts once, because its length is unknown.
    * A condition counts as its costliest branch.
    * Operations that a backward pass recomputes count again.
    * Products with the zeros that a stride puts into a gradient do not count. Products with padding do.
    * Statistics of batch norms do not count, as is usual in counts of a network's operations. Neither does the
      arithmetic of other algorithms for convolutions (Winograd).

    Args:
        jaxpr: Traced program.

    Returns:
        The number of operations. A multiplication and an addition are two.
    """
    return sum(
        _equation_flops(equation)
        for equation in jaxpr.eqns
        if not any(scope in str(equation.source_info.name_stack) for scope in UNCOUNTED)
    )


def _equation_flops(equation: JaxprEqn) -> int:
    kind, parameters = equation.primitive.name, equation.params
    operands: list[Any] = [variable.aval for variable in equation.invars]
    results: list[Any] = [variable.aval for variable in equation.outvars]
    if kind == 'dot_general':
        contracted = parameters['dimension_numbers'][0][0]
        lhs = operands[0].shape
        return 2 * results[0].size * math.prod(lhs[axis] for axis in contracted)
    if kind == 'conv_general_dilated':
        kernel = operands[1].shape
        layout = parameters['dimension_numbers'].rhs_spec
        products = math.prod(kernel[axis] for axis in layout[1:])
        return 2 * results[0].size * products // math.prod(parameters['lhs_dilation'])
    inner = [count_flops(jaxpr) for jaxpr in jaxprs_in_params(parameters)]
    if kind == 'cond':
        return max(inner)
    return sum(inner) * _repetitions(kind, parameters)


def _repetitions(kind: str, parameters: dict) -> int:
    if kind == 'scan':
        return parameters['length']
    # Inside of a shard_map are the operations of one device.
    return parameters['mesh'].size if kind == 'shard_map' else 1


def step_flops(config: ConfigDict, num_classes: int, mesh: Mesh, teacher: Teacher | None = None) -> float:
    """Counts the operations of a training step without recomputation, for the share of the peak in the log.

    Args:
        config: Configuration of the pretraining.
        num_classes: Classes of the data, for the probe. 0: no probe.
        mesh: Devices of the run.
        teacher: Network that a student learns from. The task 'simclr' has none.

    Returns:
        Operations per step over all devices. 0 if the peak of the devices is unknown.
    """
    if peak_flops(jax.devices()[0].device_kind) is None:
        return 0.0
    plain = with_values(config, {'microbatch': 0, 'sharding': 'replicated', 'data.feed': 'host', 'model.remat': ()})
    schedule, feed = make_schedule(plain, plain.batch_size), plan_feed(plain, mesh)
    program = make_program(plain, num_classes, schedule, mesh, feed, teacher)
    return float(count_flops(jax.make_jaxpr(program.step)(*program.abstract_arguments()).jaxpr))
