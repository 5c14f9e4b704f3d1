"""Makes `python -m simclr_jax` the same program as `simclr`."""

import sys

from simclr_jax.cli.main import main

sys.exit(main())
