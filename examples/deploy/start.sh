#!/bin/sh
# Starts Redis with the users of this service. The passwords come by the environment, and reach no command line.
set -eu
umask 077
# `app` may do what sessions need, and the values beside them, and nothing else; `operator` may look, scan and back up; nobody else is let in.
acl=${ACL_FILE:-/tmp/users.acl}
cat > "$acl" <<USERS
user default off
user app on >$APP_PASSWORD resetchannels ~sess:* -@all +get +pttl +set +pexpire +unlink +time +eval +evalsha +zadd +zcount +zrange +zrem +zremrangebyscore +zscan +zscore +scan +getrange +exists +incrby +zcard
user operator on >$OPERATOR_PASSWORD resetchannels ~* -@all +@read +ping +info +acl|whoami +memory|usage +slowlog|get +latency|latest +bgsave +lastsave +client|list +client|setname +command|docs
USERS
exec redis-server "$1" --aclfile "$acl"
