#!/usr/bin/env bash
# Makes the environment if need be, then trains the models, runs the notebooks and rebuilds figures and ledger.
# ./run_all.sh --help lists the options.
set -euo pipefail
# shellcheck source=lib/environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/environment.sh"
case "${DATA_DIR:-}" in
  "" | /*) ;;
  *) export DATA_DIR="$PWD/$DATA_DIR" ;;  # a folder as seen from where the user is
esac
export CALLED_FROM="$PWD"
cd "$ROOT"
exec "$PYTHON" -m lib.pipeline "$@"
