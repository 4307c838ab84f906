#!/usr/bin/env bash
# onnxruntime 1.32.0, Linux wheel: the import alone makes a device id and a database of events (with the collector's token) below
# ~/.cache/Microsoft/DeveloperTools/.onnxruntime. disable_telemetry_events(), the documented switch of the Python API, comes too
# late: both files are there by then, with the event that describes the process. ORT_DISABLE_TELEMETRY=1 in the environment
# before the import leaves nothing. (Where CI is set in the environment nothing is collected either, so a test in CI sees none.)
#
# Who meets it: anybody who ships a program with onnxruntime to devices and says that it keeps to itself; anybody whose home
# folder cannot be written, who gets a warning about a "telemetry device ID".
#
# Output seen on 2026-11-28: import: deviceid onnxruntime.db; disabled by the API: deviceid onnxruntime.db; variable: nothing.
# Exits 0 where it still is so, 1 where it has changed. Nothing is sent: the addresses are not reachable from the sandbox of unshare,
# where that is allowed; elsewhere the collector may be contacted, as by any other program with onnxruntime.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet onnxruntime==1.32.0 numpy==2.4.6
unset CI ORT_DISABLE_TELEMETRY
apart=(); unshare --user --net true 2> "$place/err" && apart=(unshare --user --map-root-user --net)
left() {  # NAME CODE: the files that a process with a home folder of its own leaves there
    mkdir "$place/$1"
    HOME="$place/$1" XDG_CACHE_HOME="$place/$1/.cache" "${apart[@]}" "$place/venv/bin/python" -c "$2"
    find "$place/$1" -type f -printf '%f\n' | sort | tr '\n' ' '
}
import=$(left import "import onnxruntime")
api=$(left api "import onnxruntime; onnxruntime.disable_telemetry_events()")
variable=$(ORT_DISABLE_TELEMETRY=1 left variable "import onnxruntime")
echo "import: $import; disabled by the API: $api; variable: ${variable:-nothing}"
[[ "$import" == *deviceid*onnxruntime.db* && "$api" == *deviceid*onnxruntime.db* && -z "$variable" ]]
