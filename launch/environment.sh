# shellcheck shell=bash disable=SC2154
# Sourced by the launchers, which set `root`. Prepares the virtual environment $root/.venv with the locked versions.

# Prints the first Python on the PATH that is new enough. SIMCLR_PYTHON names another one.
find_python() {
  local candidate candidates=(python3 python3.13 python3.12 python3.11 python)
  if [ -n "${SIMCLR_PYTHON:-}" ]; then
    candidates=("$SIMCLR_PYTHON")
  fi
  for candidate in "${candidates[@]}"; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "simclr needs Python 3.11 or newer; found: $("${candidates[0]}" --version 2>/dev/null || echo none)." \
    "Install it, or name one: SIMCLR_PYTHON=/path/to/python $0" >&2
  exit 2
}

# prepare_environment [EXTRA]: installs only if setup.py, the lock or the extra has changed.
prepare_environment() {
  local extra=${1:-} stamp wanted
  stamp="$root/.venv/installed${extra:+-$extra}"
  wanted=$(cat "$root/setup.py" "$root/constraints.txt" | cksum)
  if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    return
  fi
  echo "Preparing $root/.venv (once, a minute or two) ..." >&2
  if [ ! -x "$root/.venv/bin/python" ]; then
    local python
    python=$(find_python)
    if ! "$python" -m venv "$root/.venv"; then
      echo "Could not make $root/.venv; on Debian and Ubuntu: apt install python3-venv" >&2
      exit 2
    fi
  fi
  "$root/.venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint "$root/constraints.txt" --editable "$root${extra:+[$extra]}"
  echo "$wanted" | tee "$root/.venv/installed" >"$stamp"
}
