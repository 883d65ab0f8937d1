#!/usr/bin/env bash
# What runs before a commit: formatting, clippy with the workspace's lints, dependency rules, forbidden words.
# All of them run even when one fails, so that one round shows everything.
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

deploy/dev/setup.sh kafka || exit 1
status=0
cargo fmt --all -- --check || status=1
cargo clippy --workspace --all-targets --features va-serving/kafka -- -D warnings || status=1
if command -v cargo-deny >/dev/null 2>&1; then
    cargo deny --all-features check --hide-inclusion-graph licenses bans sources || status=1
else
    echo "lint: cargo-deny is not installed, so deny.toml was not checked (cargo install cargo-deny --locked)"
fi
deploy/dev/check-words.sh || status=1
exit "$status"
