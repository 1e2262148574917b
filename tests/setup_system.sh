#!/bin/sh
# Installs the system packages that some tests need. Needs root (or sudo) on Debian or Ubuntu;
# elsewhere it says what to install by hand. Tests that miss one are skipped with the reason.
set -eu
packages="redis-server strace curl wget aria2 nginx-light python3-venv clamav-daemon chromium"
command -v node >/dev/null 2>&1 && command -v npm >/dev/null 2>&1 || packages="$packages nodejs npm"
missing=""
for package in $packages; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' \
    || missing="$missing $package"
done
[ -n "$missing" ] || { echo "system packages: all there"; exit 0; }
if ! command -v apt-get >/dev/null 2>&1; then
  echo "install these by hand:$missing"
  exit 0
fi
as_root=""
if [ "$(id -u)" != 0 ]; then
  as_root="sudo -n"
  if ! $as_root true 2>/dev/null; then
    echo "not root, and sudo would ask: install these by hand:$missing"
    exit 0
  fi
fi
# RUNLEVEL keeps packaged services from starting: tests run servers of their own.
$as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq
$as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
  apt-get install -y -qq --no-install-recommends $missing
