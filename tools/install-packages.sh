#!/usr/bin/env bash
# install-packages.sh LIST... - install the Debian packages of some lists, those that are missing only.
# No service is started by it: this project starts what it needs by itself.
set -euo pipefail

missing=()
for package in $(sed -e 's/#.*//' "$@"); do
    dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || missing+=("$package")
done
((${#missing[@]})) || exit 0

echo "installing Debian packages: ${missing[*]}"
if [[ $EUID != 0 ]]; then
    echo "This needs root: run it as root, or install these packages yourself." >&2
    exit 1
fi
policy=/usr/sbin/policy-rc.d
made=
if [[ ! -e $policy ]]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    made=yes
fi
trap '[[ -z $made ]] || rm -f "$policy"' EXIT
if [[ " ${missing[*]} " == *" postgresql "* && ! -e /etc/postgresql-common/createcluster.conf ]]; then
    mkdir -p /etc/postgresql-common
    echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null
