# Sourced by the scripts beside it: where things are kept, how `va` is built, and how Python packages come. The Makefile says
# the same for cargo.
# Relies on bash. Leaves installing to setup.sh.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache="${XDG_CACHE_HOME:-$HOME/.cache}/voiceassistant"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$cache/target}"
export VA_CORPORA="${VA_CORPORA:-$cache/corpora}"
va="$CARGO_TARGET_DIR/debug/va"
cd "$root"

# Makes a Python environment in HOME with what pip is told to install; once, and two that want it at once take turns. A venv
# knows its own path, so it is made where it stays; `complete` says that it is whole.
python_home() { # HOME WHAT PIP_ARGUMENT...
    local home="$1" what="$2"
    shift 2
    [ ! -f "$home/complete" ] || return 0
    mkdir -p "$(dirname "$home")"
    exec 9>"$home.lock"
    flock 9
    if [ ! -f "$home/complete" ]; then
        echo "fetching $what, once" >&2
        rm -rf "$home"
        python3 -m venv "$home" &&
            "$home/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: "$@" >&2 || return 1
        touch "$home/complete"
    fi
    exec 9>&-
}
