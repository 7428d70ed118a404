#!/bin/sh
# Install what the tests of the coordinator's store need beside Python: PostgreSQL's server programs.
# Idempotent. Where it cannot work (not root, no apt) it says so and succeeds: the tests skip with their reason.
set -eu

if ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then
    exit 0
fi
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "PostgreSQL is not installed and this is not root with apt: its tests will skip" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
# the cluster Debian would start by itself is not wanted: the tests make their own
mkdir -p /etc/postgresql-common
[ -e /etc/postgresql-common/createcluster.conf ] || echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
apt-get install -q -y --no-install-recommends postgresql
