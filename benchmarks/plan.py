"""Writes the plans of ImageNet runs to benchmarks/plan.json and their tables to benchmarks/plan.md.

python benchmarks/plan.py [--run NAME ...]

Without --run it only writes the tables from plan.json. With names of RUNS, or `all`, it compiles these runs first by
`simclr plan`. Each takes up to a quarter of an hour on two cores.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
# With views as floats from the host, the step is the network and the loss alone.
HOST = ' --config.data.feed=host'
R50 = '--config=configs/imagenet.py --topology='
RUNS = {
    'R50, 4,096, v5e:4x8': f'{R50}v5e:4x8{HOST}',
    'R50, 4,096, v4:2x4x4': f'{R50}v4:2x4x4{HOST}',
    'R50, 32,768, v5e:16x16': f'{R50}v5e:16x16 --config.batch_size=32768{HOST}',
    'R152 3x SK, 4,096, fsdp, v5e:8x8': (
        f'--config=configs/imagenet.py:v2,depth=152,width=3,sk=true --topology=v5e:8x8 --config.sharding=fsdp{HOST}'
    ),
}
MICROBATCHES = {
    'whole': f'{R50}v5e:4x8{HOST}',
    **{f'{size:,}': f'{R50}v5e:4x8 --config.microbatch={size}{HOST}' for size in (1024, 512, 256)},
}
KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
TEXT = """# Plans

`simclr plan` makes these tables of ImageNet runs (224 pixels, bfloat16, three-layer head, LARS). libtpu compiles the
runs without a TPU. Bytes and operations are the compiler's counts and exact for this program. Seconds are estimates
that no TPU has confirmed. `plan.json` holds all figures, those of the costliest fusions included.
`python benchmarks/plan.py --run all` makes both files.

```bash
{commands}
```

{runs}

The rows of collectives have their number per step and the bytes of the whole arrays on a chip. The all-gather
collects the projections of all views once, 2 x batch x 128 x 4 bytes. With fsdp, further all-gathers collect the
parameters in bfloat16. The gradient of the all-gather is a reduce-scatter or an all-reduce of the same size. The other
reductions are the gradients in bfloat16 (two bytes per parameter), and the sums and second moments of batch norms. With
fsdp the compiler scatters the gradients of a small network (ResNet-18 on v5e:2x4). It reduces those of a ResNet-152
whole on every chip. There fsdp saves memory but no traffic.

The time of a step is the compiler's cycles at the clock plus the collectives' bytes. It assumes that nothing overlaps
and that a collective starts at no cost. The seconds of compilation are those of two cores with much other work.

## Microbatches

ResNet-50, 4,096 images a step on v5e:4x8, `--config.microbatch=N`:

{microbatches}

The forward pass runs twice, so that there are a third more operations. Gradients are summed once, in float32. The many
small reductions are those of batch norms, whose second moments are a few MB in every microbatch. The estimate does not
include their start. The rows of 1,024 and 256 were compiled before batch norms became parts of kernels.
"""


def main():
    """Compiles the requested runs, then writes both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--run', nargs='*', default=[], metavar='NAME')
    wanted = parser.parse_args().run
    commands = {**RUNS, **{f'microbatch {name}': command for name, command in MICROBATCHES.items()}}
    plans = json.loads((HERE / 'plan.json').read_text())
    for name in commands if wanted == ['all'] else wanted:
        plans[f'simclr plan {commands[name]}'] = compile_plan(commands[name])
        write(plans)
    write(plans)


def compile_plan(arguments):
    """Runs one `simclr plan` and returns its JSON."""
    with tempfile.TemporaryDirectory() as folder:
        answer = pathlib.Path(folder) / 'plan.json'
        command = [sys.executable, '-m', 'simclr_jax', 'plan', *arguments.split(), f'--json={answer}']
        subprocess.run(command, check=True, cwd=HERE.parent)
        return json.loads(answer.read_text())


def write(plans):
    """Writes plan.json, and plan.md with the runs that it has."""
    (HERE / 'plan.json').write_text(json.dumps(plans, indent=1) + '\n')
    found, parts = (
        {name: plans[f'simclr plan {command}'] for name, command in runs.items() if f'simclr plan {command}' in plans}
        for runs in (RUNS, MICROBATCHES)
    )
    text = TEXT.format(
        commands='\n'.join(f'simclr plan {RUNS[name]}' for name in found),
        runs=table(['', *found], [[name, *map(row, found.values())] for name, row in rows().items()]),
        microbatches=table(
            [
                'microbatch',
                'temporaries, MiB',
                'memory per chip, GiB',
                'TFLOP',
                'HBM, GB',
                'all-reduce',
                'step, ms',
                'images/s',
            ],
            [[name, *microbatch_row(plan)] for name, plan in parts.items()],
        ),
    )
    (HERE / 'plan.md').write_text(text)


def rows():
    """Returns the function that makes the cell of a plan, for the name of each row."""
    return {
        'fits': lambda plan: 'yes' if plan['fits'] else '**no**',
        'memory per chip, GiB': lambda plan: f'{needed(plan)} of {plan["limit_bytes"] / 2**30:.2f}',
        **{
            f'- {kind}, MiB': lambda plan, kind=kind: mebibytes(plan, kind)
            for kind in ('parameters', 'optimizer', 'batch', 'temporaries', 'code')
        },
        'convolutions and products per chip, TFLOP': tera,
        "- by the compiler's count, loops once": lambda plan: f'{plan["compiled"]["flops"] / 1e12:.2f}',
        'HBM traffic per chip, GB': traffic,
        **{kind: lambda plan, kind=kind: collective(plan, kind) for kind in KINDS},
        'compute at the peak, ms': lambda plan: milliseconds(plan, 'compute'),
        'HBM at its bandwidth, ms': lambda plan: milliseconds(plan, 'memory'),
        'interconnect, ms': lambda plan: milliseconds(plan, 'interconnect'),
        "compiler's cycles, ms": lambda plan: milliseconds(plan, 'cycles'),
        'step, ms': lambda plan: milliseconds(plan, 'step'),
        'bound by': lambda plan: plan['estimate']['bound'],
        'share of the peak': lambda plan: f'{plan["estimate"]["utilization"]:.0%}',
        'images/s': lambda plan: f'{plan["images_per_second"]:,.0f}',
        '- each host has to feed': lambda plan: f'{plan["images_per_second"] / plan["num_hosts"]:,.0f}',
        'epoch, s': lambda plan: f'{plan["epoch_seconds"]:.1f}',
        '800 epochs, h': lambda plan: f'{plan["hours"]:.1f}',
        'compiled in, s': lambda plan: f'{plan["compiled"]["seconds"]:.0f}',
    }


def microbatch_row(plan):
    """Makes the cells of a row after the first."""
    figures = mebibytes(plan, 'temporaries'), needed(plan), tera(plan), traffic(plan), collective(plan, 'all-reduce')
    return [*figures, milliseconds(plan, 'step'), f'{plan["images_per_second"]:,.0f}']


def needed(plan):
    """Formats the GiB that the step needs per chip."""
    return f'{plan["compiled"]["needed_bytes"] / 2**30:.2f}'


def mebibytes(plan, kind):
    """Formats the MiB of one kind of memory."""
    compiled = plan['compiled']
    return f'{(compiled["arguments"] | compiled["memory"])[kind] / 2**20:,.0f}'


def tera(plan):
    """Formats the operations per chip, in 10^12."""
    return f'{plan["compiled"]["traced_flops"] / plan["compiled"]["num_devices"] / 1e12:.2f}'


def traffic(plan):
    """Formats the GB that move between a chip and its main memory."""
    return f'{plan["compiled"]["memory_traffic"] / 1e9:.1f}'


def collective(plan, kind):
    """Formats number and bytes of one kind of collective."""
    for found in plan['compiled']['collectives']:
        if found['kind'] == kind:
            return f'{found["count"]}, {found["bytes"] / 1e6:,.1f} MB'
    return 'none'


def milliseconds(plan, kind):
    """Formats one part of the estimate in milliseconds."""
    return f'{1e3 * plan["estimate"][kind]:,.1f}'


def table(head, body):
    """Formats a Markdown table with aligned columns."""
    widths = [max(len(row[column]) for row in (head, *body)) for column in range(len(head))]
    rule = ['-' * widths[0], *('-' * (width - 1) + ':' for width in widths[1:])]
    cells = [head, rule, *body]
    aligned = [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in cells
    ]
    return '\n'.join(f'| {" | ".join(row)} |' for row in aligned)


if __name__ == '__main__':
    main()
