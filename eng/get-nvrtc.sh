#!/usr/bin/env bash
# Fetches NVRTC, the compiler of the CUDA kernels, to a Debian machine without a GPU, and prints the folder it lies in.
#
#   export FLASHARP_NVRTC=$(eng/get-nvrtc.sh)       # then the tests compile every kernel for every GPU
#
# It comes from Debian trixie's non-free component, whichever Debian this machine runs, from the mirror that its apt uses, and
# goes to artifacts/nvrtc; nothing is installed. A second run finds it there.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "get-nvrtc: $1" >&2; exit 1; }

target=$PWD/artifacts/nvrtc
if compgen -G "$target/libnvrtc.so.*" > /dev/null; then
    echo "$target"
    exit 0
fi

[[ $(. /etc/os-release 2> /dev/null && echo "$ID") == debian && $(uname -m) == x86_64 ]] || fail "this is not Debian on x86-64"
# The archive itself, not the one of security updates. Without release information, also where the lists were never fetched.
codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
mirror=$(apt-get indextargets --no-release-info --format '$(REPO_URI) $(RELEASE)' |
    awk -v codename="$codename" '$2 == codename { print $1; exit }')
[[ -n $mirror ]] || fail "apt knows no mirror"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{lists,cache,packages,root}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [arch=amd64 signed-by=$keyring] $mirror trixie non-free" > "$work/sources.list"
trixie() {
    apt-get -qq -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root "$@" >&2
}
trixie update || fail "the mirror does not offer trixie"
(cd "$work/packages" && trixie download libnvrtc12 libnvrtc-builtins12.4) || fail "the mirror does not offer libnvrtc12"
for package in "$work"/packages/*.deb; do
    dpkg -x "$package" "$work/root"
done

# Complete or not at all.
mkdir -p artifacts
rm -rf "$target.new"
mv "$work/root/usr/lib/x86_64-linux-gnu" "$target.new"
rm -rf "$target"
mv "$target.new" "$target"
echo "$target"
