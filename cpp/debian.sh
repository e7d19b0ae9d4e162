# Sourced by the scripts here: an apt of our own, so that the machine's sources and lists stay as
# they are.

# debian_apt FOLDER SUITE [ARCHITECTURE]: sets `apt`, the command, and `mirror`, where it looks:
# $DEBIAN_MIRROR, or where this machine's apt gets Debian's main archive from. apt checks packages
# against Debian's signatures.
debian_apt() {
    mirror=${DEBIAN_MIRROR:-$(
        apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2> /dev/null |
            grep -E '/debian/?$' | head -1 || true
    )}
    [ -n "$mirror" ] || fail "apt has no Debian archive here; set DEBIAN_MIRROR to one's address"
    mkdir -p "$1/lists/partial" "$1/cache/archives/partial" "$1/deb"
    local keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    echo "deb [signed-by=$keyring] $mirror $2 main" > "$1/sources.list"
    apt=(apt-get -qq -o "Dir::Etc::sourcelist=$1/sources.list" -o Dir::Etc::sourceparts=-
         -o "Dir::State::lists=$1/lists" -o "Dir::Cache=$1/cache" -o APT::Sandbox::User=root
         -o Acquire::Retries=1 -o Acquire::http::Timeout=20)
    if [ $# -eq 3 ]; then
        touch "$1/status"
        apt+=(-o "Dir::State=$1" -o "Dir::State::status=$1/status"
              -o "APT::Architecture=$3" -o "APT::Architectures::=$3")
    fi
}

# quiet LOG COMMAND...: what it prints goes to LOG
quiet() {
    local log=$1
    shift
    "$@" > "$log" 2>&1
}
