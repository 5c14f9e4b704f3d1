# shellcheck shell=bash disable=SC2154
# Sourced by the launchers, which set `root`. Prepares a virtual environment with the locked versions: $root/.venv, or
# $environment. It is built beside its place and renamed at the end, so that it is complete or absent.

# find_python [VERSION]: prints the newest of Python 3.13, 3.12 and 3.11 on the PATH or among pyenv's versions, or else
# any newer Python. VERSION allows only this version. SIMCLR_PYTHON names another Python.
find_python() {
  local version candidate candidates=()
  for version in ${1:-3.13 3.12 3.11}; do
    candidates+=("python$version" "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/$version".*"/bin/python$version")
  done
  [ -n "${1:-}" ] || candidates+=(python3 python)
  if [ -n "${SIMCLR_PYTHON:-}" ]; then
    candidates=("$SIMCLR_PYTHON")
  fi
  for candidate in "${candidates[@]}"; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
  candidate=${SIMCLR_PYTHON:-python3}
  echo "simclr needs Python ${1:-3.11 or newer}; found: $("$candidate" --version 2>/dev/null || echo none)." \
    "Install it, or name one: SIMCLR_PYTHON=/path/to/python $0" >&2
  exit 2
}

# version_of PYTHON: prints its version without the patch level, for example 3.13. Fails if it does not start.
version_of() {
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

# prepare_environment EXTRA...: installs simclr with these extras of setup.py, unless they are installed already. The
# environment is made again if it is incomplete, or if another version of Python is to be used.
prepare_environment() {
  environment=${environment:-$root/.venv}
  ! is_prepared "$@" || return 0
  local python
  python=$(find_python)
  # The lock belongs to descriptor 9. It ends with this shell and its pip, even after SIGKILL.
  exec 9>"$environment.lock"
  "$python" -c '
import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("Another launcher prepares the environment. Waiting for it ...", file=sys.stderr, flush=True)
    fcntl.flock(9, fcntl.LOCK_EX)
'
  is_prepared "$@" || install_environment "$python" "$@"
  exec 9>&-
}

# read_installed: reads the record of the last installation. Sets $sums and $extras, to nothing if there is no record.
read_installed() {
  sums='' extras=''
  if [ -e "$environment/installed" ]; then
    { read -r sums && read -r extras; } <"$environment/installed" || true
  fi
}

# is_prepared EXTRA...: whether the environment works and has these extras in the present versions.
is_prepared() {
  local sums extras extra version
  read_installed
  [ "$sums" = "$(sums_of_versions)" ] || return 1
  for extra in "$@"; do
    case " $extras " in
      *" $extra "*) ;;
      *) return 1 ;;
    esac
  done
  version=$(version_of "$environment/bin/python") || return 1
  [ -z "${SIMCLR_PYTHON:-}" ] || [ "$version" = "$(version_of "$SIMCLR_PYTHON")" ]
}

sums_of_versions() {
  cat "$root/setup.py" "$root"/constraints/*.txt | cksum
}

# install_environment PYTHON EXTRA...: brings the environment up to date, or makes it again.
install_environment() {
  local python=$1 place=$environment version sums extras extra
  shift
  echo "Preparing $environment (once, a few minutes) ..." >&2
  version=$(version_of "$python")
  # The extras of earlier calls stay.
  read_installed
  for extra in "$@"; do
    case " $extras " in
      *" $extra "*) ;;
      *) extras="$extras${extras:+ }$extra" ;;
    esac
  done
  if [ "$(version_of "$environment/bin/python")" != "$version" ] ||
    ! "$environment/bin/python" -m pip --version >/dev/null 2>&1; then
    place=$environment.new
    rm -rf "$place"
    if ! "$python" -m venv "$place"; then
      echo "Could not make $place; on Debian and Ubuntu: apt install python3-venv" >&2
      exit 2
    fi
  fi
  local constraints="$root/constraints/py${version/./}.txt" locked=()
  if [ -e "$constraints" ]; then
    locked=(--constraint "$constraints")
  else
    echo "There are no locked versions for Python $version. Installing the newest ones" >&2
  fi
  "$place/bin/python" -m pip install --quiet --disable-pip-version-check ${locked[@]+"${locked[@]}"} \
    --editable "$root${extras:+[${extras// /,}]}"
  printf '%s\n' "$(sums_of_versions)" "$extras" >"$place/installed"
  [ "$place" = "$environment" ] || move_environment "$place"
}

# move_environment PLACE: puts a finished environment into its place. Its scripts contain their absolute path.
move_environment() {
  "$1/bin/python" -c '
import pathlib, sys
old, new = (name.encode() for name in sys.argv[1:])
for path in [pathlib.Path(sys.argv[1], "pyvenv.cfg"), *pathlib.Path(sys.argv[1], "bin").iterdir()]:
    if path.is_file() and not path.is_symlink() and old in (content := path.read_bytes()):
        path.write_bytes(content.replace(old, new))
' "$1" "$environment"
  rm -rf "$environment.old"
  [ ! -e "$environment" ] || mv "$environment" "$environment.old"
  mv "$1" "$environment"
  rm -rf "$environment.old"
}
