# Sourced by the scripts beside it: where things are kept, and how `va` is built. The Makefile says the same for cargo.
# Relies on bash. Leaves installing to setup.sh.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache="${XDG_CACHE_HOME:-$HOME/.cache}/voiceassistant"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$cache/target}"
export VA_CORPORA="${VA_CORPORA:-$cache/corpora}"
va="$CARGO_TARGET_DIR/debug/va"
cd "$root"
