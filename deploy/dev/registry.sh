#!/usr/bin/env bash
# A real schema registry on loopback, for tests and for trying things out: Apicurio Registry, in memory, no container.
# It speaks the Confluent API below `/apis/ccompat/v7`.
#
#   deploy/dev/registry.sh fetch              fetches it into the cache folder; costs nothing when it is there
#   deploy/dev/registry.sh start [FOLDER]     fetches, starts, waits until it answers, then prints `url URL` (of the
#                                             Confluent API) and `folder FOLDER`
#   deploy/dev/registry.sh stop FOLDER        ends the registry of that folder and removes it
#   deploy/dev/registry.sh run                starts, prints the URL, and stops when its input ends
#
# Maven fetches the archive by coordinates; it must have the hash below. Logs and the process id are in FOLDER (a new
# temporary one when not given). Relies on maven, a Java runtime of version 17 or newer, curl and python3.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

version=2.6.13.Final
sha256=3cda1b34aa020fb4ac4dd6a66018d757e81e437f97e20a1f92d366b70091c6ba
app="$cache/apicurio/$version"

die() { printf 'registry: %s\n' "$*" >&2; exit 1; }
usage() { sed -n '2,13s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

fetch() {
    [ ! -f "$app/complete" ] || return 0
    command -v mvn >/dev/null || die "fetching the registry needs maven: install it (Debian package maven)"
    mkdir -p "$cache/apicurio"
    # Two test runs at once take turns.
    exec 9>"$cache/apicurio/.lock"
    flock 9
    [ ! -f "$app/complete" ] || return 0
    local work archive
    work=$(mktemp -d "$cache/apicurio/.fetch.XXXXXX")
    archive="$work/apicurio-registry-app-$version-all.tar.gz"
    mvn -q -B dependency:copy -Dartifact="io.apicurio:apicurio-registry-app:$version:tar.gz:all" \
        -DoutputDirectory="$work" >"$work/log" 2>&1 ||
        { cat "$work/log" >&2; rm -rf "$work"; die "maven could not fetch the registry $version"; }
    echo "$sha256  $archive" | sha256sum --check --quiet >&2 ||
        { rm -rf "$work"; die "the archive of version $version is not the one that was looked at"; }
    mkdir "$work/app"
    tar -xzf "$archive" -C "$work/app"
    touch "$work/app/complete"
    rm -rf "$app"
    mv "$work/app" "$app"
    rm -rf "$work"
    exec 9>&-
}

free_port() {
    python3 -c 'import socket
with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    print(s.getsockname()[1])'
}

start() { # FOLDER
    fetch
    command -v java >/dev/null || die "the registry needs Java 17 or newer: install it (Debian package openjdk-17-jre-headless)"
    local folder=$1 port url
    mkdir -p "$folder"
    [ ! -e "$folder/registry" ] || die "\`$folder\` is in use: stop it first"
    touch "$folder/registry"
    # When the start fails or is interrupted, nothing stays behind.
    trap "stop $(printf %q "$folder")" EXIT
    trap 'exit 1' INT TERM
    port=$(free_port)
    url="http://127.0.0.1:$port/apis/ccompat/v7"
    # A session of its own: Ctrl-C in the terminal is for the script, which then stops the registry.
    (cd "$folder" && exec setsid java -Xms64m -Xmx384m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:-UsePerfData \
        -Dquarkus.http.host=127.0.0.1 -Dquarkus.http.port="$port" -jar "$app/apicurio-registry-app-$version-runner.jar") \
        >"$folder/server.log" 2>&1 9>&- </dev/null &
    echo $! >"$folder/pid"
    local deadline=$((SECONDS + 90))
    until curl -s -f -o "$folder/answer" "$url/subjects"; do
        kill -0 "$(cat "$folder/pid")" 2>/dev/null && [ $SECONDS -lt $deadline ] ||
            { tail -n 30 "$folder/server.log" >&2; die "the registry did not start"; }
        sleep 0.1
    done
    trap - EXIT INT TERM
    echo "url $url"
    echo "folder $folder"
}

stop() { # FOLDER
    [ -f "$1/registry" ] || die "\`$1\` is not a folder that \`start\` made"
    local pid
    if [ -f "$1/pid" ]; then
        pid=$(cat "$1/pid")
        # It keeps everything in memory, so there is nothing to shut down in order.
        kill -KILL "$pid" 2>/dev/null || true
        while kill -0 "$pid" 2>/dev/null; do sleep 0.05; done
    fi
    rm -rf "$1"
}

case ${1:-} in
    fetch) fetch ;;
    start) start "${2:-$(mktemp -d)}" ;;
    run)
        folder=$(mktemp -d)
        said=$(mktemp)
        start "$folder" >"$said"
        trap 'stop "$folder"' EXIT
        trap 'exit 1' INT TERM HUP
        sed -n 's/^url //p' "$said"
        rm -f "$said"
        cat >/dev/null
        ;;
    stop) stop "${2:?"stop needs the folder that start printed"}" ;;
    *) usage >&2; exit 2 ;;
esac
