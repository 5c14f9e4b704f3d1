"""`python -m simclr_jax` is `simclr`."""

import sys

from simclr_jax.cli.main import main

sys.exit(main())
