"""Operations of convolutions and matrix products, counted in a traced program before any compiler changes it."""

import math
from collections.abc import Iterator

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax.build import make_program, make_schedule
from simclr_jax.chips import peak_flops
from simclr_jax.ops import batch_statistics, winograd

# Scopes of operations that are not the network's, but of the way in which it is computed.
UNCOUNTED = batch_statistics.STATISTICS_SCOPE, winograd.SCOPE


def count_flops(jaxpr: Jaxpr) -> int:
    """Multiplications and additions of all convolutions and matrix products of a program, on all devices together.

    Loops count as often as they run, what is computed again in a backward pass as well. Of `while` loops one round is
    counted, and the costliest branch of a condition. Products with the zeros that a stride puts into a gradient are
    left out, those with the zeros of padding are not. Left out are also the statistics of batch norms, as in any
    count of a network's operations, and other ways to compute a convolution.
    """
    return sum(
        _equation_flops(equation)
        for equation in jaxpr.eqns
        if not any(scope in str(equation.source_info.name_stack) for scope in UNCOUNTED)
    )


def _equation_flops(equation: JaxprEqn) -> int:
    kind, parameters = equation.primitive.name, equation.params
    if kind == 'dot_general':
        contracted = parameters['dimension_numbers'][0][0]
        lhs = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(lhs[axis] for axis in contracted)
    if kind == 'conv_general_dilated':
        kernel = equation.invars[1].aval.shape
        layout = parameters['dimension_numbers'].rhs_spec
        products = math.prod(kernel[axis] for axis in layout[1:])
        return 2 * equation.outvars[0].aval.size * products // math.prod(parameters['lhs_dilation'])
    inner = [count_flops(jaxpr) for jaxpr in _jaxprs(parameters)]
    if kind == 'cond':
        return max(inner)
    return sum(inner) * _repetitions(kind, parameters)


def _repetitions(kind: str, parameters: dict) -> int:
    if kind == 'scan':
        return parameters['length']
    # What is inside speaks of one device's part.
    return parameters['mesh'].size if kind == 'shard_map' else 1


def _jaxprs(parameters: dict) -> Iterator[Jaxpr]:
    for value in parameters.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, Jaxpr):
                yield part


def step_flops(config: ConfigDict, num_classes: int, mesh: Mesh) -> float:
    """Operations of a step that computes nothing twice; 0 where no peak is known to set them against."""
    if peak_flops(jax.devices()[0].device_kind) is None:
        return 0.0
    plain = config.copy_and_resolve_references().unlock()
    plain.update(microbatch=0, sharding='replicated')
    plain.model.remat = ()
    program = make_program(plain, num_classes, make_schedule(plain, plain.batch_size), mesh)
    return float(count_flops(jax.make_jaxpr(program.step)(*program.abstract_arguments(plain)).jaxpr))
