#!/usr/bin/env bash
# Runs the smoke tests (train, resume, evaluate, embed, export, plan on eight devices) in environments at the edge of what
# simclr supports. launch/test.sh tests the middle: the newest Python with TensorFlow.
#   launch/matrix.sh              all of them
#   launch/matrix.sh oldest       Python 3.11 with its JAX, in .venv-oldest
#   launch/matrix.sh plain        the newest Python without TensorFlow, in .venv-plain
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." >/dev/null && pwd)
# shellcheck source=launch/environment.sh
source "$root/launch/environment.sh"
# shellcheck source=launch/options.sh
source "$root/launch/options.sh"
no_more_options "$@"

# smoke NAME EXTRA...: runs the smoke tests in the environment .venv-NAME, or some of them with $tests.
smoke() {
  environment=$root/.venv-$1
  prepare_environment smoke "${@:2}"
  echo "Smoke tests in $environment: $(version_of "$environment/bin/python"), extras ${*:2}"
  (cd "$root" && "$environment/bin/python" -m pytest -p no:cacheprovider tests/whole/test_smoke.py ${tests:+-k "$tests"})
}

[ $# -gt 0 ] || set -- oldest plain
# Programs that one version of JAX exports for the others to load.
SIMCLR_EXCHANGE=$(mktemp -d)
export SIMCLR_EXCHANGE
trap 'rm -rf "$SIMCLR_EXCHANGE"' EXIT
for name in "$@"; do
  case $name in
    oldest) (SIMCLR_PYTHON=$(find_python 3.11) && export SIMCLR_PYTHON && smoke oldest tensorflow export) ;;
    plain) (smoke plain export) ;;
    *) mistake "unknown environment '$name'; choose from oldest, plain (see $0 --help)" ;;
  esac
done

# The first environment now loads the programs of the later ones.
if [ "$*" = "oldest plain" ]; then
  (SIMCLR_PYTHON=$(find_python 3.11) && export SIMCLR_PYTHON && tests=exports smoke oldest tensorflow export)
fi
