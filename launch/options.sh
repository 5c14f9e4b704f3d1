# shellcheck shell=bash
# Sourced by the launchers: their options, their dry runs, and how they speak of mistakes.

# mistake MESSAGE...: the user's to mend, exit code 2.
mistake() {
  echo "${0##*/}: $*" >&2
  exit 2
}

# take_options OPTION... -- ARGUMENTS...: of the arguments, takes the options up to the first that is none, sets a
# variable of its name for each (`dry-run` sets $dry_run to true, `zone=` sets $zone to its value), and $taken to their
# number. An option that is not given has the value of SIMCLR_ZONE and the like, or is empty.
take_options() {
  local known_options=' ' option_name # no names of options: those belong to the caller
  while [ "$1" != -- ]; do
    known_options="$known_options$1 "
    option_name=SIMCLR_$(in_capitals "${1%=}")
    printf -v "$(variable_of "$1")" '%s' "${!option_name:-}"
    shift
  done
  shift
  taken=0
  while [ $# -gt 0 ]; do
    option_name=${1#--}
    case "$1,$known_options" in
      --*=*,*" ${option_name%%=*}= "*) printf -v "$(variable_of "$option_name")" '%s' "${option_name#*=}" ;;
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

# no_more_options ARGUMENTS...: what take_options left must begin with no option. --help prints the script's first lines.
no_more_options() {
  case ${1:-} in
    --help)
      sed -n '2,/^[^#]/{/^# shellcheck/d;s/^# \{0,1\}//p;}' "$0"
      exit
      ;;
    -*) mistake "there is no option $1 here (options with a value are written --name=value); see $0 --help" ;;
  esac
}

# need NAME...: these options must have a value.
need() {
  local needed
  for needed in "$@"; do
    if [ -z "${!needed}" ]; then
      mistake "--$needed=... is needed (or SIMCLR_$(in_capitals "$needed") in the environment); see $0 --help"
    fi
  done
}

# need_number NAME VALUE: a whole number.
need_number() {
  case $2 in
    '' | *[!0-9]*) mistake "--$1=$2 must be a whole number, for example --$1=4" ;;
  esac
}

# quoted WORDS...: as a line of shell that means exactly these words.
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

# show_or_run COMMAND...: runs it; with --dry-run only shows it.
show_or_run() {
  if [ -n "${dry_run:-}" ]; then
    quoted "$@"
  else
    "$@"
  fi
}
