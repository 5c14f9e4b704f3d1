# shellcheck shell=bash
# Sourced by the launchers. Functions for options, dry runs and error messages.

# mistake MESSAGE...: prints a mistake of the user and ends with exit code 2.
mistake() {
  echo "${0##*/}: $*" >&2
  exit 2
}

# take_options OPTION... -- ARGUMENTS...: reads the known options at the start of the arguments, and sets $taken to their
# number. It sets one variable per option: `dry-run` sets $dry_run to true, `zone=` sets $zone to the value. A missing
# option has the value of its environment variable, SIMCLR_ZONE for `zone=`, or is empty. `env=+` may be repeated, and
# sets the array $env to all values. It has no environment variable.
take_options() {
  local known_options=' ' option_name # these names must differ from the variables of all options
  while [ "$1" != -- ]; do
    known_options="$known_options$1 "
    option_name=SIMCLR_$(in_capitals "${1%=}")
    case $1 in
      *+) eval "$(variable_of "$1")=()" ;;
      *) printf -v "$(variable_of "$1")" '%s' "${!option_name:-}" ;;
    esac
    shift
  done
  shift
  taken=0
  while [ $# -gt 0 ]; do
    option_name=${1#--}
    case "$1,$known_options" in
      --*=*,*" ${option_name%%=*}= "*) printf -v "$(variable_of "$option_name")" '%s' "${option_name#*=}" ;;
      --*=*,*" ${option_name%%=*}=+ "*) eval "$(variable_of "$option_name")+=(\"\${option_name#*=}\")" ;;
      --*=*,*) return ;;
      --*,*" $option_name "*) printf -v "$(variable_of "$option_name")" true ;;
      *) return ;;
    esac
    taken=$((taken + 1))
    shift
  done
}

# variable_of dry-run -> dry_run, variable_of zone=x -> zone
variable_of() {
  local name=${1%%=*}
  echo "${name//-/_}"
}

# in_capitals dry-run -> DRY_RUN
in_capitals() {
  echo "$1" | tr '[:lower:]-' '[:upper:]_'
}

# show_help: prints the first lines of the script and ends.
show_help() {
  sed -n '2,/^[^#]/{/^# shellcheck/d;s/^# \{0,1\}//p;}' "$0"
  exit
}

# no_more_options ARGUMENTS...: rejects a further option at the start. --help shows the help.
no_more_options() {
  case ${1:-} in
    --help) show_help ;;
    -*) mistake "there is no option $1; write options with a value as --name=value, see $0 --help" ;;
  esac
}

# need NAME...: checks that these options have a value.
need() {
  local needed
  for needed in "$@"; do
    if [ -z "${!needed}" ]; then
      mistake "--$needed=... is needed (or SIMCLR_$(in_capitals "$needed") in the environment); see $0 --help"
    fi
  done
}

# need_number NAME VALUE: checks that the value of an option is a whole number.
need_number() {
  case $2 in
    '' | *[!0-9]*) mistake "--$1=$2 must be a whole number, for example --$1=4" ;;
  esac
}

# need_pairs NAME VALUE...: checks that every value of an option has the form NAME=VALUE.
need_pairs() {
  local option=$1 pair
  shift
  for pair in "$@"; do
    case $pair in
      [A-Za-z_]*=*) ;;
      *) mistake "--$option=$pair must be --$option=NAME=VALUE" ;;
    esac
  done
}

# quoted WORDS...: prints a line of shell that stands for exactly these words.
quoted() {
  local word line='' apostrophe="'\\''"
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_@%+=:,./-]*) word="'${word//\'/$apostrophe}'" ;;
    esac
    line="$line $word"
  done
  echo "${line# }"
}

# show_or_run COMMAND...: runs a command. With --dry-run it only prints the command.
show_or_run() {
  if [ -n "${dry_run:-}" ]; then
    quoted "$@"
  else
    "$@"
  fi
}
