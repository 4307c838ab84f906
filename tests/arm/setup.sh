#!/bin/bash
# A Python for 64-bit ARM with ONNX Runtime, run by QEMU on x64. Everything lies in one folder; nothing is installed on this machine.
#
#   bash setup.sh DIR [pip's arguments: packages, -c constraints.txt]
#   DIR/arm CPU file.py ...       CPU: cortex-a72 (Raspberry Pi 4), cortex-a76 (Raspberry Pi 5), neoverse-v1 (i8mm); SITE=more:paths is added to PYTHONPATH
#
# Needs Debian (apt-get and its mirror, dpkg-deb), pip, the network once, and 350 MB. Both sides come from Debian 13: QEMU 7.2 of
# Debian 12 shows the host's /proc/cpuinfo, and ONNX Runtime reads that.
set -eu
here=$(realpath -m "$1"); shift
for tool in apt-get dpkg-deb; do
    command -v $tool > /dev/null || { echo "there is no $tool: tests/arm/setup.sh runs on Debian" >&2; exit 2; }
done
[ "$(uname -m)" = x86_64 ] || { echo "tests/arm/setup.sh runs on x64, and this is $(uname -m)" >&2; exit 2; }
mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | grep -oE 'https?://[^ ]*/debian/?( |$)' | head -1)
[ -n "$mirror" ] || { echo "apt's sources name no Debian mirror: tests/arm/setup.sh runs on Debian" >&2; exit 2; }
mkdir -p "$here"

# fetch ARCHITECTURE PACKAGE...: into a private folder of apt's, with what they need
fetch() {
    local arch=$1 apt="$here/apt-$1"; shift
    mkdir -p "$apt"/{lists,cache}/partial "$apt/archives/partial"; : > "$apt/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" > "$apt/sources"
    local options=(-qq -o APT::Architecture="$arch" -o APT::Architectures="$arch" -o Dir::Etc::sourcelist="$apt/sources"
        -o Dir::Etc::sourceparts=/dev/null -o Dir::State="$apt" -o Dir::State::lists="$apt/lists" -o Dir::State::status="$apt/status"
        -o Dir::Cache="$apt/cache" -o Dir::Cache::archives="$apt/archives" -o APT::Sandbox::User=root -o Acquire::Languages=none
        -o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20)
    apt-get "${options[@]}" update
    if [ "$arch" = arm64 ]; then
        apt-get "${options[@]}" -y --no-install-recommends --download-only install "$@" > /dev/null
    else
        (cd "$apt/archives" && apt-get "${options[@]}" download "$@")
    fi
}

fetch "$(dpkg --print-architecture)" qemu-user
dpkg-deb --fsys-tarfile "$here"/apt-*/archives/qemu-user_*.deb | tar -x -C "$here" --strip-components=3 ./usr/bin/qemu-aarch64
fetch arm64 python3 libstdc++6
mkdir -p "$here/root/usr"/{lib,bin}
for part in lib bin; do ln -sfn usr/$part "$here/root/$part"; done
for deb in "$here"/apt-arm64/archives/*.deb; do dpkg-deb --fsys-tarfile "$deb" | tar -x --keep-directory-symlink -C "$here/root"; done
version=$(ls "$here/root/usr/bin" | grep -oE '^python3\.[0-9]+$' | cut -c7-)
${PYTHON:-python3} -m pip install --quiet --disable-pip-version-check --retries 1 --timeout 20 --upgrade --target "$here/site" --python-version "$version" \
    --implementation cp --only-binary=:all: --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
    --platform manylinux_2_17_aarch64 "$@"
rm -rf "$here"/apt-*
cat > "$here/arm" <<'RUN'
#!/bin/bash
here=$(dirname "$(realpath "$0")"); cpu=$1; shift
exec "$here/qemu-aarch64" -cpu "$cpu" -L "$here/root" -E PYTHONHOME="$here/root/usr" -E PYTHONPATH="$here/site${SITE:+:$SITE}" \
    -E OPENBLAS_NUM_THREADS=1 "$here"/root/usr/bin/python3 "$@"
RUN
chmod +x "$here/arm"
