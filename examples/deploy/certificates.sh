#!/bin/sh
# Makes a certificate authority and a certificate for Redis, in the directory that is named: certificates.sh DIRECTORY HOST...
# For trying things out, and for networks of your own. They last a year.
set -eu
directory=$1
shift
mkdir -p "$directory"
cd "$directory"
[ -e redis.crt ] && exit 0
names=$(for host in "$@"; do printf ',DNS:%s' "$host"; done | cut -c 2-)
umask 077
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 -subj "/CN=sessions of tower-keep" \
    -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign" -keyout ca.key -out ca.crt 2>/dev/null
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$1" -keyout redis.key -out redis.csr 2>/dev/null
printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth\n' "$names" > redis.ext
openssl x509 -req -days 365 -in redis.csr -CA ca.crt -CAkey ca.key -CAcreateserial -extfile redis.ext -out redis.crt 2>/dev/null
rm redis.csr redis.ext
chmod 644 ca.crt redis.crt redis.key # Redis runs as another user; the directory is what protects the key
