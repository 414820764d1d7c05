#!/usr/bin/env bash
# Runs all tests. What they need is installed by the system's package manager when it is missing.
set -euo pipefail
cd "$(dirname "$0")"

# packages in apt, dnf, apk, pacman, brew
install() {
    local sudo=""
    [ "$(id -u)" = 0 ] || sudo=$(command -v sudo || true)
    # Each is a list: several packages in one word.
    # shellcheck disable=SC2086
    if command -v apt-get >/dev/null 2>&1; then
        $sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq $1 >/dev/null
    elif command -v dnf >/dev/null 2>&1; then
        $sudo dnf install -y -q $2
    elif command -v apk >/dev/null 2>&1; then
        $sudo apk add -q $3
    elif command -v pacman >/dev/null 2>&1; then
        $sudo pacman -Sy --noconfirm $4
    elif command -v brew >/dev/null 2>&1; then
        brew install --quiet $5
    fi
}

missing() {
    echo "missing: $1. Install it and run this again." >&2
    exit 1
}

# program -> package in apt, and elsewhere
need() {
    command -v "$1" >/dev/null 2>&1 && return
    echo "installing $1"
    install "$2" "$3" "$3" "$3" "$3"
    command -v "$1" >/dev/null 2>&1 || missing "$1"
}

# A Python with PyJWT: the same that tests/http/jwt.rs looks for.
has_pyjwt() {
    local python
    for python in "${PYTHON:-}" /usr/bin/python3 python3; do
        "$python" -c 'import jwt.algorithms, cryptography; assert jwt.algorithms.has_crypto' >/dev/null 2>&1 && return
    done
    return 1
}

need_pyjwt() {
    has_pyjwt && return
    echo "installing PyJWT"
    install "python3-jwt python3-cryptography" "python3-jwt python3-cryptography" "py3-jwt py3-cryptography" \
        "python-pyjwt python-cryptography" "python cryptography"
    has_pyjwt || missing "PyJWT, with cryptography, for python3 or for the Python that PYTHON names"
}

[ -n "${REDIS_SERVER_BIN:-}" ] || need redis-server redis-server redis
need redis-cli redis-tools redis
need curl curl curl
[ -n "${CHROMIUM_BIN:-}" ] || need chromium chromium chromium # for the tests in a real browser
need prometheus prometheus prometheus # for the dashboard and the alert rules; promtool comes with it
need promtool prometheus prometheus
need openssl openssl openssl
need cc gcc gcc # for ring and AWS-LC: TLS, JWTs, and the certificates of the tests
need_pyjwt
# For tests/servers.sh. Without it, that says what is missing.
python3 -m pip --version >/dev/null 2>&1 || install python3-pip python3-pip py3-pip python-pip python || true

# A full run compiles everything once: what the next build could reuse would only cost time and space.
export CARGO_INCREMENTAL="${CARGO_INCREMENTAL:-0}"
# Most tests wait for servers, so there are more threads than cores.
export RUST_TEST_THREADS="${RUST_TEST_THREADS:-4}"
status=0
cargo test --all-features "$@" || status=$?
# A selection by arguments runs on the server of the system only.
case "$*" in "" | --no-fail-fast) tests/servers.sh --short || status=$? ;; esac
exit "$status"
