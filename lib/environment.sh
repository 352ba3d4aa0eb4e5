# shellcheck shell=bash
# Sourced by run_all.sh and run_tests.sh: finds or makes the Python environment and sets PYTHON.
#
# An environment counts only when its .stamp, written last, holds the hash of requirements.lock and pyproject.toml;
# a half-made or outdated one is made again. Of two runs at once the second waits. Works in bash 3.2 (macOS).
# Everything is called as "$PYTHON" -m ..., never as a console script: their first line breaks on a path with spaces.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
ENVIRONMENT_LOCK="$ROOT/.environment.lock"
ENVIRONMENT_MB=3000

environment_say() { printf '%s\n' "$*" >&2; }

environment_fail() {
  environment_say "error: $*"
  exit 1
}

environment_hash() {  # of the two files that decide what is installed
  if command -v sha256sum >/dev/null 2>&1; then
    cat "$ROOT/requirements.lock" "$ROOT/pyproject.toml" | sha256sum | cut -d ' ' -f 1
  else
    cat "$ROOT/requirements.lock" "$ROOT/pyproject.toml" | shasum -a 256 | cut -d ' ' -f 1
  fi
}

# The stamp's two lines: what was installed, and for which checkout (the project itself is installed by its path).
environment_stamp() { environment_hash && printf '%s\n' "$ROOT"; }

environment_find() {  # sets PYTHON to a valid environment's, else returns 1
  local folder
  for folder in "$ROOT/.venv" "$ROOT/.conda"; do
    if [ -x "$folder/bin/python" ] && [ -f "$folder/.stamp" ] &&
      [ "$(cat "$folder/.stamp")" = "$(environment_stamp)" ]; then
      # shellcheck disable=SC2034  # for whoever sources this
      PYTHON="$folder/bin/python"
      return 0
    fi
  done
  return 1
}

environment_owner() { cat "$ENVIRONMENT_LOCK/pid" 2>/dev/null || true; }

environment_unlock() {
  rm -rf "$ENVIRONMENT_LOCK"
  trap - EXIT INT TERM HUP
}

environment_lock() {  # a folder, because making one is atomic everywhere; a dead owner's is taken over
  local owner told="" nameless=0
  until mkdir "$ENVIRONMENT_LOCK" 2>/dev/null; do
    [ -d "$ENVIRONMENT_LOCK" ] || [ -w "$ROOT" ] || environment_fail "cannot write in $ROOT; move the checkout where you can"
    owner="$(environment_owner)"
    if [ -z "$owner" ] && [ "$nameless" -lt 5 ]; then
      nameless=$((nameless + 1))  # its owner is about to write its number
    elif [ -z "$owner" ] || ! kill -0 "$owner" 2>/dev/null; then
      mv "$ENVIRONMENT_LOCK" "$ENVIRONMENT_LOCK.$$" 2>/dev/null && rm -rf "$ENVIRONMENT_LOCK.$$"
      continue
    elif [ -z "$told" ]; then
      environment_say "waiting for another run (process $owner) that is making the environment"
      told=yes
    fi
    sleep 1
  done
  trap environment_unlock EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  printf '%s\n' "$$" >"$ENVIRONMENT_LOCK/pid"
}

environment_space() {
  local free
  free="$(df -Pk "$ROOT" | tail -n 1 | sed -E 's/.*[[:space:]]([0-9]+)[[:space:]]+[0-9]+%.*/\1/')"
  case "$free" in '' | *[!0-9]*) return 0 ;; esac
  [ "$((free / 1024))" -ge "$ENVIRONMENT_MB" ] ||
    environment_fail "the environment needs about $ENVIRONMENT_MB MB, but $((free / 1024)) MB are free here; free some space or move the checkout"
}

environment_python() {  # prints a python >= 3.11 that can make environments
  local name
  for name in python3.11 python3.12 python3.13 python3; do
    if command -v "$name" >/dev/null 2>&1 &&
      "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      printf '%s\n' "$name"
      return 0
    fi
  done
  return 1
}

environment_conda() {
  local name
  for name in conda mamba micromamba; do
    if command -v "$name" >/dev/null 2>&1; then
      printf '%s\n' "$name"
      return 0
    fi
  done
  return 1
}

environment_with_uv() {
  uv venv --quiet --python 3.11 .venv || uv venv --quiet --python '>=3.11' .venv || return 1
  uv pip install --quiet --python .venv/bin/python -r requirements.lock &&
    uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation -e .
}

environment_with_python() {
  "$1" -m venv .venv &&
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock &&
    environment_install .venv
}

environment_with_conda() {
  # asking nothing is a setting of conda, and of mamba; not every version has it as an option of this command
  CONDA_ALWAYS_YES=true MAMBA_ALWAYS_YES=true "$1" env create -p ./.conda -f environment.yml &&
    environment_install .conda
}

environment_install() {  # the project itself, so that `from lib import ...` works anywhere
  "$1/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
}

environment_make() {
  local tool folder=.venv started=$SECONDS here="$PWD"  # where the user is
  cd "$ROOT" || exit 1
  environment_space
  if [ -e .venv ] || [ -e .conda ]; then
    environment_say "the environment is incomplete or outdated: making it again"
  fi
  if command -v uv >/dev/null 2>&1; then
    tool=uv
  elif tool="$(environment_python)"; then
    :
  elif tool="$(environment_conda)"; then
    folder=.conda
  else
    environment_fail "no way to make a Python environment: install uv, or Python 3.11 or newer (with its venv module), or conda (mamba, micromamba)"
  fi
  environment_say "making $folder with $tool from requirements.lock; about $ENVIRONMENT_MB MB, a few minutes, once"
  rm -rf .venv .conda
  case "$tool" in
    uv) environment_with_uv ;;
    python*) environment_with_python "$tool" ;;
    *) environment_with_conda "$tool" ;;
  esac || environment_fail "$tool could not make $folder (its message is above); run again to start over"
  printf '%s\n' "$((SECONDS - started))" >"$folder/.seconds"  # for the benchmarks
  environment_stamp >"$folder/.stamp.new"
  mv "$folder/.stamp.new" "$folder/.stamp"
  cd "$here" || exit 1
}

if ! environment_find; then
  environment_lock
  environment_find || environment_make
  environment_unlock
  environment_find || environment_fail "the environment was made but has no python; delete .venv and .conda and run again"
fi
