#!/usr/bin/env bash
# Runs one benchmark of benches/: builds what it measures, fetches what it needs, prints tables, and saves them as data
# (benches/results/) and in BENCHMARKS.md. Without a name it lists what there is.
#
#   deploy/dev/bench.sh NAME [options]     or     make bench NAME=... [ARGS="options"]; --help shows a benchmark's own
#
#   VA_BENCH_PROFILE   `release` (default) or `dev`: `dev` is built in minutes and good for trying, and is not saved
#   VA_BENCH_CACHE     where indexes and Python packages are kept (bench/ in the cache folder)
#
# Relies on setup.sh having run. Leaves figures, medians and pairing to the scripts in benches/.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

available() { find benches -mindepth 1 -maxdepth 1 -name '*.py' -printf '%f\n' | sed 's/\.py$//' | sort; }
name="${1:-}"
if [ -z "$name" ] || ! available | grep -qx -- "$name"; then
    [ -z "$name" ] || echo "bench: no benchmark \`$name\`" >&2
    echo "usage: make bench NAME=... [ARGS=...]; there is:" >&2
    for each in $(available); do
        printf '  %-12s %s\n' "$each" "$(sed -n '1s/^"""`[a-z_]*`: //p' "benches/$each.py")" >&2
    done
    exit 2
fi
shift
# `make` hands its variables on in the environment.
read -ra more <<<"${ARGS:-}"
set -- "$@" "${more[@]}"

export VA_BENCH_PROFILE="${VA_BENCH_PROFILE:-release}"
export VA_BENCH_CACHE="${VA_BENCH_CACHE:-$cache/bench}"
export PYTHONPATH="$root/benches" PYTHONDONTWRITEBYTECODE=1
case $VA_BENCH_PROFILE in
    release) folder=release ;;
    dev) folder=debug ;;
    *) echo "bench: VA_BENCH_PROFILE is \`$VA_BENCH_PROFILE\`: use release or dev" >&2; exit 2 ;;
esac
deploy/dev/setup.sh kafka
# One build for both, and for `make release`, so that they share every dependency. Cargo's own words say which file is the meter, whose name
# holds a hash.
VA_BENCH_METER=$(cargo build --workspace --bins --bench meter --features va-serving/kafka --profile "$VA_BENCH_PROFILE" --locked \
    --message-format json-render-diagnostics | python3 -c 'import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["name"] == "meter":
        print(message["executable"])')
export VA_BENCH_METER VA_BENCH_VA="$CARGO_TARGET_DIR/$folder/va"

case $name in
    embed) corpora=(sample) ;;
    log | freshness | kafka | scale) corpora=() ;;
    *) corpora=(labels) ;;
esac
if [ ${#corpora[@]} -gt 0 ]; then deploy/dev/fetch-corpora.sh "${corpora[@]}"; fi
if [ "$name" = kafka ] || [ "$name" = scale ]; then
    deploy/dev/setup.sh streams
    deploy/dev/kafka.sh fetch
fi
if [ "$name" = kafka ]; then
    # The peer, out of the work tree; Maven looks whether anything changed.
    export VA_BENCH_STREAMS="$VA_BENCH_CACHE/kafka-streams"
    mvn -q -B -f benches/kafka-streams/pom.xml -Dpeer.target="$VA_BENCH_STREAMS" compile dependency:build-classpath
fi
case $name in
    log | kafka | scale) ;;
    *) "$VA_BENCH_VA" model pull multilingual-e5-small >/dev/null ;;
esac

python=python3
if [ "$name" = embed ]; then
    venv="$VA_BENCH_CACHE/venv"
    wanted=$(cat benches/requirements.txt)
    if [ "$(cat "$venv/installed" 2>/dev/null)" != "$wanted" ]; then
        echo "bench: installing $(tr '\n' ' ' <benches/requirements.txt)" >&2
        rm -rf "$venv"
        python3 -m venv "$venv"
        "$venv/bin/pip" install -q --disable-pip-version-check -r benches/requirements.txt
        cp benches/requirements.txt "$venv/installed"
    fi
    python="$venv/bin/python"
fi
if [ "$name" = serving ]; then
    # The peer; what it needs in turn is left to pip.
    venv="$VA_BENCH_CACHE/venv-litellm"
    wanted=$(cat benches/requirements-litellm.txt)
    if [ "$(cat "$venv/installed" 2>/dev/null)" != "$wanted" ]; then
        echo "bench: installing $wanted" >&2
        rm -rf "$venv"
        python3 -m venv "$venv"
        "$venv/bin/pip" install -q --disable-pip-version-check -r benches/requirements-litellm.txt
        cp benches/requirements-litellm.txt "$venv/installed"
    fi
    export VA_BENCH_LITELLM="$venv/bin/litellm"
fi
mkdir -p "$VA_BENCH_CACHE"
exec "$python" "benches/$name.py" "$@"
