#!/usr/bin/env bash
# Style check, type check and tests. `--slow` adds the tests that take minutes; everything else goes to pytest.
set -euo pipefail
# shellcheck source=lib/environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/environment.sh"
cd "$ROOT"

slow=no
for argument in "$@"; do
  shift
  if [ "$argument" = --slow ]; then slow=yes; else set -- "$@" "$argument"; fi
done

"$PYTHON" -m ruff check .
"$PYTHON" -m mypy
if [ "$slow" = yes ]; then
  exec "$PYTHON" -m pytest "$@"
fi
# One process a core and one thread a process: models this small gain nothing from more threads. A file's tests stay in
# one process, which makes its models once. Slow tests want the machine for themselves.
OMP_NUM_THREADS=1 exec "$PYTHON" -m pytest -m "not slow" -n auto --dist loadfile "$@"
