#!/usr/bin/env bash
# Makes sure that what the build (with `kafka`, also that of the Kafka client; with `test`, also the tests; with
# `streams`, also the benchmark against Kafka Streams) needs is installed. When all is there it only looks, which takes a
# fraction of a second. On Debian and Ubuntu it installs what is missing; elsewhere it says in one line what to.
#
#   deploy/dev/setup.sh build|kafka|test|streams
#
# A Rust toolchain is never installed from here: which one, and where, is the user's choice.
set -euo pipefail

rust_minor=94 # as rust-version in Cargo.toml
packages=()   # Debian packages that are missing

need() { # COMMAND PACKAGE
    command -v "$1" >/dev/null 2>&1 || packages+=("$2")
}

need cc build-essential
need c++ build-essential
need cmake cmake
need curl curl
need python3 python3
need protoc protobuf-compiler
# protoc finds the well-known types beside itself; Debian has them in a package of their own.
protoc=$(command -v protoc || echo /usr/bin/protoc)
[ -f "$(dirname "$protoc")/../include/google/protobuf/any.proto" ] || [ -f /usr/include/google/protobuf/any.proto ] ||
    packages+=(libprotobuf-dev)
# Looked for as a folder: starting pip costs half a second.
python3 -c 'import importlib.util as u, sys; sys.exit(u.find_spec("pip") is None)' 2>/dev/null || packages+=(python3-pip)
stage="${1:-build}"
if [ "$stage" != build ]; then
    # The client library is C, and a plain build leaves it out.
    need pkg-config pkg-config
    pkg-config --exists openssl 2>/dev/null || packages+=(libssl-dev)
    pkg-config --exists zlib 2>/dev/null || packages+=(zlib1g-dev)
fi
if [ "$stage" = test ]; then
    need psql postgresql-client # the PostgreSQL wire is tested with the real client
    # The catalog is tested on a real server, see postgres.sh.
    compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || need initdb postgresql
    # The cache is tested on a real server, see redis.sh.
    command -v valkey-server >/dev/null 2>&1 || need redis-server redis-server
    # Certificates of the servers that are tested with TLS.
    need openssl openssl
    # A venv holds the model server and the clients that the gateway is tested with. Debian has what makes one apart.
    python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3-venv)
    # Kafka is tested with real brokers, which Maven fetches.
    need mvn maven
    need java openjdk-17-jre-headless
    # Logging in elsewhere is tested with a real provider, which npm fetches, and curl as the browser.
    need node nodejs
    need npm npm
    need curl curl
fi

if [ "$stage" = streams ]; then
    # The broker, and the peer that is compiled.
    need mvn maven
    need javac openjdk-17-jdk-headless
fi

if [ ${#packages[@]} -gt 0 ]; then
    mapfile -t packages < <(printf '%s\n' "${packages[@]}" | sort -u)
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "setup: install what your system calls these Debian packages, then run this again: ${packages[*]}" >&2
        exit 1
    fi
    sudo=()
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null 2>&1 || {
            echo "setup: as root run: apt-get update && apt-get install -y ${packages[*]}" >&2
            exit 1
        }
        sudo=(sudo)
    fi
    echo "setup: installing ${packages[*]}" >&2
    keep=()
    if [[ " ${packages[*]} " == *" postgresql "* ]] && [ ! -e /etc/postgresql-common/createcluster.conf ]; then
        # The package would make a database of its own and start a server on it, which nobody asked for.
        "${sudo[@]}" mkdir -p /etc/postgresql-common
        echo "create_main_cluster = false" | "${sudo[@]}" tee /etc/postgresql-common/createcluster.conf >/dev/null
        keep=(-o Dpkg::Options::=--force-confold)
    fi
    policy=/usr/sbin/policy-rc.d
    if [[ " ${packages[*]} " == *" redis-server "* ]] && [ ! -e "$policy" ]; then
        # Likewise: installed, not started, now or at the next boot.
        printf '#!/bin/sh\nexit 101\n' | "${sudo[@]}" tee "$policy" >/dev/null
        "${sudo[@]}" chmod +x "$policy"
        trap '"${sudo[@]}" rm -f "$policy"; "${sudo[@]}" systemctl disable redis-server >/dev/null 2>&1 || true' EXIT
    fi
    "${sudo[@]}" apt-get -qq update
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${keep[@]}" \
        ca-certificates "${packages[@]}" >/dev/null
fi

if ! version=$(rustc --version 2>/dev/null) || ! command -v cargo >/dev/null 2>&1; then
    echo "setup: no Rust toolchain found: install Rust 1.$rust_minor or newer with rustup (or put ~/.cargo/bin on PATH), then run this again" >&2
    exit 1
fi
if [[ ! $version =~ ^rustc\ ([0-9]+)\.([0-9]+) ]] || { [ "${BASH_REMATCH[1]}" = 1 ] && [ "${BASH_REMATCH[2]}" -lt $rust_minor ]; }; then
    echo "setup: found \`$version\`, need 1.$rust_minor or newer: run \`rustup update stable\`" >&2
    exit 1
fi
