#!/usr/bin/env bash
# distributed 2026.8.0: a task handed to `Client.get_executor()` may run a second time after its result was delivered. The futures look like
# those of concurrent.futures, but while one is held its dask future is too, and the scheduler owes its result: when the worker that
# computed it dies, it is computed anew on another one, though `result()` has given it to the caller already. With a pool of processes
# a task that has ended stays ended.
#
# Who meets it: anyone who maps trainings, or anything else that writes files or costs minutes, over dask by the standard interface and
# keeps the list of futures (`[pool.submit(...) for ...]`, as the standard library's own examples do).
#
# Output seen on 2026-11-29 (three tasks on two workers; all results read; then one worker is killed):
#   futures kept: 3 tasks ran 4 times or more
#   futures let go: 3 tasks ran 3 times
# Exits 0 where it still is so, 1 where it has changed.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet distributed==2026.8.0 dask==2026.8.0
cd "$place"
cat > work.py <<'PY'
import os
from pathlib import Path


def task(number, folder):
    with (Path(folder) / f"task-{number}").open("a") as file:
        file.write(f"{os.getpid()}\n")
    return os.getpid()
PY
cat > main.py <<'PY'
import os
import signal
import sys
import time
from pathlib import Path

from distributed import Client, LocalCluster
from work import task


def runs(folder):
    return sum(len(path.read_text().splitlines()) for path in folder.iterdir())


def ask(keeps):
    folder = Path("kept" if keeps else "let-go").resolve()
    folder.mkdir()
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster) as client:
        pool = client.get_executor(pure=False)
        futures = [pool.submit(task, number, str(folder)) for number in range(3)]
        done = [future.result() for future in futures]
        if not keeps:
            del futures
            time.sleep(2)
        os.kill(done[0], signal.SIGKILL)
        time.sleep(8)
    return runs(folder)


if __name__ == "__main__":
    kept, let_go = ask(True), ask(False)
    print(f"futures kept: 3 tasks ran {'4 times or more' if kept > 3 else f'{kept} times'}")
    print(f"futures let go: 3 tasks ran {let_go} times")
    sys.exit(not (kept > 3 and let_go == 3))
PY
PYTHONPATH=. venv/bin/python main.py 2> "$place/errors" || { tail -3 "$place/errors" >&2; exit 1; }
