# shellcheck shell=bash
# What the scripts share.

# Install the Debian packages that are missing; without root, say which.
need_packages() { # names
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f='${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ]; then
        echo "missing packages; as root: apt-get install ${missing[*]}" >&2
        return 1
    fi
    apt_get install --no-install-recommends "${missing[@]}" && return 0
    # The lists may be missing or old.
    apt_get update && apt_get install --no-install-recommends "${missing[@]}"
}

# apt-get that asks nothing, waits for another apt, and shows its output only when it fails.
apt_get() {
    local log
    log=$(mktemp)
    if ! DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 timeout 900 apt-get -y -o DPkg::Lock::Timeout=300 "$@" >"$log" 2>&1 </dev/null; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        return 1
    fi
    rm -f "$log"
}
