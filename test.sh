#!/usr/bin/env bash
# Runs all tests. What they need is installed by the system's package manager when it is missing.
set -euo pipefail
cd "$(dirname "$0")"

# program -> package in apt, dnf/yum, apk, pacman, brew
need() {
    command -v "$1" >/dev/null 2>&1 && return
    local program=$1 sudo=""
    [ "$(id -u)" = 0 ] || sudo=$(command -v sudo || true)
    echo "installing $program"
    if command -v apt-get >/dev/null 2>&1; then
        $sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq "$2" >/dev/null
    elif command -v dnf >/dev/null 2>&1; then
        $sudo dnf install -y -q "$3"
    elif command -v apk >/dev/null 2>&1; then
        $sudo apk add -q "$3"
    elif command -v pacman >/dev/null 2>&1; then
        $sudo pacman -Sy --noconfirm "$3"
    elif command -v brew >/dev/null 2>&1; then
        brew install --quiet "$3"
    fi
    command -v "$program" >/dev/null 2>&1 || {
        echo "missing: $program. Install it and run this again." >&2
        exit 1
    }
}

[ -n "${REDIS_SERVER_BIN:-}" ] || need redis-server redis-server redis
need curl curl curl
[ -n "${CHROMIUM_BIN:-}" ] || need chromium chromium chromium # for the tests in a real browser
need cc gcc gcc # for ring: TLS, and the certificates of the tests

cargo test --all-features "$@"
