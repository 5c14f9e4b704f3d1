"""Presents a plan as text and as plain data."""

import dataclasses

from simclr_jax.planning.estimate import Estimate
from simclr_jax.planning.plan import Plan

GIB, MIB = 2**30, 2**20


def as_dict(plan: Plan) -> dict:
    """Returns all values of a plan for a JSON file.

    Sizes are in bytes and durations in seconds. Both are per device, like `flops`. `traced_flops` is over all devices.
    """
    fields = dataclasses.asdict(plan)
    fields['fits'] = plan.fits
    if plan.estimate:
        fields['images_per_second'] = plan.images_per_second
        fields['epoch_seconds'] = plan.epoch_seconds
        fields['hours'] = plan.hours
    return fields


def as_text(plan: Plan) -> str:
    """Returns the plan as text for a terminal."""
    sections = [_headline(plan), _memory(plan)]
    if plan.compiled.memory:
        sections += [_work(plan), _collectives(plan), _fusions(plan)]
    if plan.estimate:
        sections.append(_time(plan, plan.estimate))
    if plan.largest_batch is not None:
        sections.append(_largest(plan))
    return '\n\n'.join(filter(None, sections))


def _headline(plan: Plan) -> str:
    compiled = plan.compiled
    verdict = 'fits' if plan.fits else 'DOES NOT FIT'
    return (
        f'{plan.devices} ({compiled.num_devices} devices, {plan.num_hosts} hosts), {compiled.batch_size:,} images '
        f'per step: {verdict}, {compiled.needed_bytes / GIB:.2f} of {plan.limit_bytes / GIB:.2f} GiB per device '
        f'(compiled in {compiled.seconds:.0f} s).'
    )


def _memory(plan: Plan) -> str:
    parts = dict(plan.compiled.arguments)
    memory = plan.compiled.memory
    if memory:
        # The difference is negative if the step does not use a part of the batch.
        parts['padding'] = max(0, memory.arguments - sum(parts.values()))
        parts |= {'temporaries': memory.temporaries, 'outputs': memory.outputs, 'code': memory.code}
    return _table('Memory per device, MiB', {name: f'{size / MIB:,.1f}' for name, size in parts.items()})


def _work(plan: Plan) -> str:
    compiled = plan.compiled
    rows = {
        'convolutions and products, TFLOP': f'{compiled.traced_flops / compiled.num_devices / 1e12:,.3f}',
        "the compiler's count (loops once), TFLOP": f'{compiled.flops / 1e12:,.3f}',
        'main memory read and written, GB': f'{compiled.memory_traffic / 1e9:,.2f}',
    }
    return _table('Work per device and step', rows)


def _collectives(plan: Plan) -> str:
    rows = {
        collective.kind: f'{collective.count} times, {collective.bytes:,} bytes'
        for collective in plan.compiled.collectives
    }
    return _table('Collectives per device and step', rows or {'none': ''})


def _fusions(plan: Plan) -> str:
    compiled = plan.compiled
    if not compiled.cycles:
        return ''
    rows = {}
    for fusion in compiled.fusions:
        total = fusion.cycles * fusion.times
        source = fusion.source.removeprefix('jit(step)/')
        rows[fusion.name] = f'{total:,}  {total / compiled.cycles:5.1%}  {source}'
    rows['all'] = f'{compiled.cycles:,}'
    return _table('Estimated cycles per step (by the compiler)', rows)


def _time(plan: Plan, seconds: Estimate) -> str:
    rate, hosts = plan.images_per_second, plan.num_hosts
    rows = {
        'compute at the peak': f'{seconds.compute * 1e3:,.1f} ms',
        'main memory at its bandwidth': f'{seconds.memory * 1e3:,.1f} ms',
        'interconnect at its bandwidth': f'{seconds.interconnect * 1e3:,.1f} ms',
        "the compiler's cycles": f'{seconds.cycles * 1e3:,.1f} ms',
        'one step': f'{seconds.step * 1e3:,.1f} ms, bound by {seconds.bound}, {seconds.utilization:.0%} of the peak',
        'images/s': f'{rate:,.0f}, of which each host feeds {rate / hosts:,.0f}',
        'one epoch': f'{plan.epoch_seconds:,.1f} s ({plan.num_images:,} images)',
        'whole run': f'{plan.hours:,.1f} h ({plan.total_steps:,} steps)',
    }
    return _table('Time', rows)


def _largest(plan: Plan) -> str:
    rows = {f'{compiled.batch_size:,} images': f'{compiled.needed_bytes / GIB:.2f} GiB' for compiled in plan.tried}
    answer = f'{plan.largest_batch:,} images' if plan.largest_batch else 'none of these'
    return _table('Largest batch that fits', {**rows, 'fits': answer})


def _table(title: str, rows: dict[str, str]) -> str:
    width = max(map(len, rows))
    return '\n'.join([title, *(f'  {name.ljust(width)}  {value}'.rstrip() for name, value in rows.items())])
