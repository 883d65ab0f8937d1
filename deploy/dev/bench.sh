#!/usr/bin/env bash
# Runs one benchmark of benches/, or lists what there is. Each is a cargo bench target or an executable script.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

available() {
    find benches -mindepth 1 -maxdepth 1 \( -name '*.rs' -o -name '*.sh' \) -printf '%f\n' 2>/dev/null |
        sed 's/\.[a-z]*$//' | sort
}
name="${1:-}"
if [ -z "$name" ] || ! available | grep -qx -- "$name"; then
    [ -z "$name" ] || echo "bench: no benchmark \`$name\`" >&2
    echo "usage: make bench NAME=...; there is:" >&2
    if [ -n "$(available)" ]; then available | sed 's/^/  /' >&2; else echo "  (none yet)" >&2; fi
    exit 2
fi
shift
if [ -f "benches/$name.sh" ]; then exec bash "benches/$name.sh" "$@"; fi
exec cargo bench --workspace --bench "$name" -- "$@"
