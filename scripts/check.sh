#!/usr/bin/env bash
# Every check, for people and for CI.
set -euo pipefail
cd "$(dirname "$0")/.."

ruff format --check .
ruff check .
lint-imports
mypy
# One thread each for two test processes: torch's own threads would fight over the cores.
OMP_NUM_THREADS=1 pytest -n 2 -m "not gpu" --cov=isengard
