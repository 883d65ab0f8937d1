#!/usr/bin/env bash
# A real OpenID Connect provider on loopback, for tests: `oidc-provider` from npm, in memory, no container.
#
#   deploy/dev/oidc.sh fetch               installs it into the cache folder; costs nothing when it is there
#   deploy/dev/oidc.sh run REDIRECT_URL    starts it for a client that is sent back there, prints its issuer, and stops when
#                                          its input ends
#
# npm installs the versions and hashes of oidc/package-lock.json. Relies on node 18 or newer and npm.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

here="$root/deploy/dev/oidc"
app="$cache/oidc/$(sha256sum "$here/package-lock.json" | cut -c1-16)"

die() { printf 'oidc: %s\n' "$*" >&2; exit 1; }

fetch() {
    [ ! -f "$app/complete" ] || return 0
    command -v npm >/dev/null || die "the provider needs node and npm: install them (Debian packages nodejs, npm)"
    mkdir -p "$cache/oidc"
    # Two test runs at once take turns.
    exec 9>"$cache/oidc/.lock"
    flock 9
    if [ ! -f "$app/complete" ]; then
        rm -rf "$app"
        mkdir "$app"
        cp "$here/package.json" "$here/package-lock.json" "$app"
        (cd "$app" && npm ci --no-audit --no-fund --ignore-scripts >"$app/log" 2>&1) ||
            { tail -n 20 "$app/log" >&2; die "npm could not install the provider"; }
        touch "$app/complete"
    fi
    exec 9>&-
}

run() { # REDIRECT_URL
    fetch
    local port
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    # Beside its modules, where node looks for them.
    cp "$here/provider.mjs" "$app/provider-$$.mjs"
    # A session of its own, and not the input: that is what tells when to stop.
    setsid node "$app/provider-$$.mjs" "$port" "$1" 2>"$app/provider-$$.log" </dev/null &
    local pid=$!
    # shellcheck disable=SC2064 # those of now
    trap "kill $pid 2>/dev/null || true; rm -f '$app/provider-$$.mjs' '$app/provider-$$.log'" EXIT
    trap 'exit 1' INT TERM HUP
    cat >/dev/null
}

case ${1:-} in
    fetch) fetch ;;
    run) run "${2:?"run needs the URL that the browser is sent back to"}" ;;
    *) sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac
