#!/usr/bin/env bash
# Compiles the package and runs the tests that need no torch on every Python from 3.11 to 3.14 that is there.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
shopt -s nullglob
for version in 3.11 3.12 3.13 3.14; do
  python=$(command -v "python$version" || true)
  for candidate in "$python" "$HOME"/.pyenv/versions/"$version".*/bin/python; do
    [ -n "$candidate" ] && "$candidate" -c '' 2>/dev/null || continue
    echo "Python $("$candidate" -c 'import platform; print(platform.python_version())')"
    "$candidate" -W error -m compileall -q -f -o 0 gptcli tests >/dev/null
    "$candidate" -m venv "$work/$version"
    "$work/$version/bin/pip" install -q click numpy pexpect pytest pyyaml hypothesis rich safetensors tokenizers tqdm
    PYTHONPATH=. PYTHONDONTWRITEBYTECODE=1 "$work/$version/bin/python" -m pytest -q -p no:cacheprovider \
      tests/base tests/config tests/test_architecture.py
    break
  done
done
