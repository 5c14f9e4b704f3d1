"""Write a trained encoder or classifier for other programs, with a model card and the lines that load it.

Examples:
  simclr export --workdir=runs/r50 --format=torchvision --out=exports/r50
  simclr export --workdir=runs/r50/trained/finetune-NAME --format=onnx --out=exports/classifier

--workdir is the directory of a run, or of a classifier in it that the protocols finetune and linear_sgd have trained.
The written file is loaded anew and computes fixed images. The largest differences are printed. Above 1e-4 nothing is
kept, and the exit code is 1. The limit is higher, up to 1e-2, where float32 alone moves our own outputs that far.

  safetensors   everything, for PyTorch, with the module that computes it beside it
  torchvision   ResNets, EfficientNet and MobileNetV3 of width 1 under torchvision's names
  timm          ResNets of width 1 under timm's names
  saved_model   TensorFlow, with the outputs of google-research/simclr
  stablehlo     JAX and XLA on CPUs, NVIDIA GPUs and TPUs
  onnx          ONNX, opset 17
"""

import argparse

from simclr_jax.cli.options import needed_path

NAME = 'export'
SUMMARY = 'write an encoder or classifier for PyTorch, TensorFlow, ONNX or XLA'
FORMATS = ('safetensors', 'torchvision', 'timm', 'saved_model', 'stablehlo', 'onnx')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    parser.add_argument('--workdir', required=True, type=needed_path, metavar='DIR', help='run, or classifier in it')
    parser.add_argument('--format', required=True, choices=FORMATS, help='kind of the file')
    parser.add_argument('--out', required=True, type=needed_path, metavar='DIR', help='directory to make')


def run(options: argparse.Namespace) -> int:
    """Writes, checks and reports. Returns the exit code."""
    from simclr_jax.exits import FAILURE
    from simclr_jax.interop.export import export
    from simclr_jax.interop.imported import CheckError

    try:
        check = export(options.workdir, options.format, options.out)
    except CheckError as error:
        print(error)
        return FAILURE
    print(f'Loaded the file anew and computed fixed images with {check.runner}.')
    for name, difference in check.differences.items():
        print(f'{name}: largest difference {difference:.1e} of the largest entry (allowed: {check.limit:.0e})')
    print(f'Wrote {options.out}. Its README.md says how to load it.')
    return 0
