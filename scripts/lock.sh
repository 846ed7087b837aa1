#!/usr/bin/env bash
# Pins what pyproject.toml asks for: one universal list for every platform and Python version, with hashes, without addresses.
set -euo pipefail
cd "$(dirname "$0")/.."
compile() {
    .venv/bin/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-emit-find-links --no-annotate --no-header --quiet "$@"
}
compile --upgrade --output-file requirements.txt
compile --upgrade --extra dev --constraint requirements.txt --output-file requirements-dev.txt
if grep -nE '://|^--|@ ' requirements.txt requirements-dev.txt; then
    echo "the lists above must name no address" >&2
    exit 1
fi
