"""Writes how step time and memory grow with batch, image size and devices.

python benchmarks/growth.py [--compile]

The results are benchmarks/growth.json, growth.md and growth.png. With --compile it first compiles the steps that
growth.json lacks for TPUs by `simclr plan`. This needs no TPU and takes a minute or two per step on two cores. Without
--compile it only writes table and plot from growth.json.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import matplotlib

matplotlib.use('Agg')
from matplotlib import pyplot

HERE = pathlib.Path(__file__).resolve().parent
# A ResNet-18. With views as floats from the host, the step is the network and the loss alone.
R18 = '--config=configs/cifar10.py:r18 --config.model.dtype=bfloat16 --config.data.feed=host --images=1281167'


def command(topology='v5e:2x4', batch=4096, size=32, stem='cifar', block=0):
    """Makes the arguments of `simclr plan`."""
    return (
        f'{R18} --topology={topology} --config.batch_size={batch} --config.data.image_size={size} '
        f'--config.model.stem={stem} --config.loss.block_size={block}'
    )


AXES = {
    'images per batch, 8 chips, 32 pixels': {batch: command(batch=batch) for batch in (256, 1024, 4096, 16384, 32768)},
    'images per batch, 8 chips, 32 pixels, loss in blocks of 512': {
        batch: command(batch=batch, block=512) for batch in (32768,)
    },
    'pixels per side, 8 chips, 1,024 images': {
        size: command(batch=1024, size=size, stem='imagenet') for size in (64, 128, 224)
    },
    'chips, 4,096 images, 32 pixels': {
        chips: command(topology=topology) for chips, topology in ((8, 'v5e:2x4'), (32, 'v5e:4x8'), (256, 'v5e:16x16'))
    },
}
HEAD = (
    'step, ms',
    'us per image and chip',
    'memory per chip, GiB',
    'fits 15.75',
    'HBM, GB',
    'TFLOP',
    'bound by',
)


def main():
    """Compiles if requested, and writes table and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--compile', action='store_true')
    options = parser.parse_args()
    file = HERE / 'growth.json'
    plans = json.loads(file.read_text()) if file.exists() else {}
    if options.compile:
        wanted = {arguments for axis in AXES.values() for arguments in axis.values()}
        for arguments in sorted(wanted - plans.keys()):
            plans[arguments] = compiled(arguments)
            file.write_text(json.dumps(plans, indent=1) + '\n')
    axes = {name: {at: plans[arguments] for at, arguments in axis.items()} for name, axis in AXES.items()}
    (HERE / 'growth.md').write_text('\n\n'.join(table(name, axis) for name, axis in axes.items()) + '\n')
    plot(axes)


def compiled(arguments):
    """Compiles one step and returns the table's figures."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / 'plan.json'
        simclr = [sys.executable, '-m', 'simclr_jax', 'plan', *arguments.split(), f'--json={file}']
        subprocess.run(simclr, check=True, cwd=HERE.parent)
        plan = json.loads(file.read_text())
    chips = plan['compiled']['num_devices']
    return {
        'batch': plan['compiled']['batch_size'],
        'chips': chips,
        'step_seconds': plan['estimate']['step'],
        'needed_bytes': plan['compiled']['needed_bytes'],
        'fits': plan['fits'],
        'memory_traffic': plan['compiled']['memory_traffic'],
        'flops': plan['compiled']['traced_flops'] / chips,
        'bound': plan['estimate']['bound'],
        'compile_seconds': plan['compiled']['seconds'],
    }


def table(name, axis):
    """Formats a Markdown table with one row per point."""
    head = f'| {name} | {" | ".join(HEAD)} |\n|{"---|" * (len(HEAD) + 1)}'
    return '\n'.join([head, *(f'| {at:,} | {" | ".join(cells(plan))} |' for at, plan in axis.items())])


def cells(plan):
    """Formats the cells of a plan in the order of HEAD."""
    return (
        f'{1e3 * plan["step_seconds"]:,.2f}',
        f'{microseconds(plan):,.1f}',
        f'{plan["needed_bytes"] / 2**30:.2f}',
        'yes' if plan['fits'] else '**no**',
        f'{plan["memory_traffic"] / 1e9:.1f}',
        f'{plan["flops"] / 1e12:.2f}',
        plan['bound'],
    )


def microseconds(plan):
    """Computes the microseconds of a chip per image of the batch."""
    return 1e6 * plan['step_seconds'] * plan['chips'] / plan['batch']


def plot(axes):
    """Plots step time and memory side by side, one axis of growth per row."""
    groups = {}
    for name, axis in axes.items():
        groups.setdefault(name.split(',')[0], []).append((name, axis))
    figure, places = pyplot.subplots(len(groups), 2, figsize=(10, 3.2 * len(groups)), squeeze=False)
    for row, (label, members) in zip(places, groups.items(), strict=True):
        for name, axis in members:
            rest = name.split(', ', 1)[1]
            row[0].loglog(list(axis), [1e3 * plan['step_seconds'] for plan in axis.values()], 'o-', label=rest)
            row[1].loglog(list(axis), [plan['needed_bytes'] / 2**30 for plan in axis.values()], 'o-', label=rest)
        row[1].axhline(15.75, color='grey', linestyle=':', label='limit of a chip')
        for place, quantity in zip(row, ('step, ms', 'memory per chip, GiB'), strict=True):
            place.set(xlabel=label, ylabel=quantity)
            place.set_xticks(sorted({at for _, axis in members for at in axis}))
            place.xaxis.set_major_formatter('{x:,.0f}')
            place.xaxis.set_minor_formatter('')
            place.legend(fontsize=7)
            place.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(HERE / 'growth.png', dpi=90)


if __name__ == '__main__':
    main()
