#!/bin/sh
# Install what tests need beside Python: PostgreSQL's server programs (the coordinator's store), Orthanc with its
# DICOMweb plugin (a hospital's archive), and Chromium (the pages are used in it).
# Idempotent. Where it cannot work (not root, no apt) it says so and succeeds: the tests skip with their reason.
set -eu

missing=""
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="postgresql"
if [ ! -x /usr/sbin/Orthanc ] || [ ! -e /usr/share/orthanc/plugins/libOrthancDicomWeb.so ]; then
    missing="$missing orthanc orthanc-dicomweb"
fi
command -v chromium >/dev/null 2>&1 || missing="$missing chromium"
if [ -z "$missing" ]; then
    exit 0
fi
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "not installed, and this is not root with apt: $missing. Their tests will skip" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
if ! apt-cache show orthanc-dicomweb >/dev/null 2>&1; then
    echo "this distribution has no Orthanc with DICOMweb: its tests will skip" >&2
    missing=$(echo "$missing" | sed 's/orthanc-dicomweb//; s/orthanc//')
fi
# the cluster Debian would start by itself is not wanted: the tests make their own
mkdir -p /etc/postgresql-common
[ -e /etc/postgresql-common/createcluster.conf ] || echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
# Nor is the archive, which would listen on every interface: nothing is started while we install (invoke-rc.d(8)),
# a policy of the machine's own is left alone.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 1' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
# shellcheck disable=SC2086 # a list of packages, perhaps an empty one
apt-get install -q -y --no-install-recommends $missing
case $missing in
*orthanc*) update-rc.d orthanc disable ;; # nor at the next start of the machine
esac
