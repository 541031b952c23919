#!/usr/bin/env bash
# Everything that must hold before a change lands: format, lint, types, tests.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${1:-$(dirname "$(command -v python3)")}
"$bin/ruff" format --check .
"$bin/ruff" check .
"$bin/mypy"
"$bin/python" -m pytest -n auto --maxprocesses 4 -rs
