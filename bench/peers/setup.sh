#!/usr/bin/env bash
# Installs every peer of `cargo xtask bench --peers`: a Python environment in bench/peers/.venv, and the Rust peers in release
# mode. It can be run again at any time. PYTHON names the interpreter (3.11 or newer) where python3 is another one.
set -euo pipefail
cd "$(dirname "$0")"

if [ ! -x .venv/bin/python ]; then
    "${PYTHON:-python3}" -m venv .venv
fi
.venv/bin/python -m pip install --quiet --requirement requirements.txt

for peer in candle burn; do
    # In its own folder, where its .cargo/config.toml holds; a target folder of the caller would hide the binary.
    (cd "$peer" && cargo build --release --locked --target-dir target)
done
echo "every peer is installed; try: cargo xtask bench --peers"
