"""Mutated files against every reader: each ends in a result or in one clear line, never in a traceback, crash or hang.

    python benchmarks/fuzz.py                         # 50,000 mutations over all readers, some 30 minutes of two cores
    python benchmarks/fuzz.py --readers peft-config task manifest-report --count 500 --seed 1

Tiny inputs are made once: a bundle with two adapters, bases in each format that is read, data, build files. A mutation
changes one file: bits, lengths, cuts and copies (binary, mostly in the headers), or values, keys and characters (JSON,
TOML). A bundle's changed file comes **with a manifest that has its new hash**, so that the hash does not stop what is
meant to be read. Each mutation runs in a forked child, its address space limited, and its end is one of

    passes      it was read: the mutation left it valid
    clear       one line of an error of ours, as the command line shows it
    defect      any other exception: what a user would see as a defect of qia3
    died        the child was killed, crashed or left by itself
    hung        it took longer than ten seconds

The exit code is 1 where anything is a defect, died or hung; each such case is kept in the folder named at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SECONDS, MEMORY = 10, 6 << 30
BAD = ("defect", "died", "hung")
BATCH = 40  # mutations in one child
WILD = [
    None, True, False, 0, -1, 1, 2, 3, 7, 10**9, 2**31, 2**63, 2**64, 10**400, 1.5, -0.0, 1e308, float("inf"), float("nan"), "", " ", "0", "none",
    "a" * 70_000, "\ud800", "\u0000", "{text}", "{text}{text}", "../x", "/etc/passwd", "C:\\x", "con", ".", "(a+)+$", "[", [], {}, [[]], [None],
    ["a", "a"], ["", "b"], [1, 2], {"a": 1}, {"": []}, [[[[[[[[]]]]]]]],
]  # fmt: skip
RAW = ["9" * 5000, "[" * 3000, '{"a":' * 3000, "NaN", "-", '"', "\\", ",", "}", "]", "1e999", "tru", "\x00", "\ufeff"]


@dataclass(frozen=True)
class Reader:
    """`make` lays out a folder anew, `files` (in it) are mutated one at a time as `kind`, and `act` reads the folder."""

    name: str
    files: tuple[str, ...]
    kind: str  # "json", "toml", "lines", "binary", "text"
    make: Callable[[Path], None]
    act: Callable[[Path], Any]
    share: float = 1.0  # of the mutations, beside the others
    after: Callable[[Path, str], None] = lambda folder, file: None  # makes the folder consistent with the changed file


def mutate(data: bytes, kind: str, draw: random.Random) -> bytes:
    """One change. Text kinds are changed as values half of the time, else as characters."""
    if kind == "json" and draw.random() < 0.7:
        with contextlib.suppress(ValueError, UnicodeDecodeError):
            return _changed_json(json.loads(data), draw)
    if kind == "lines" and draw.random() < 0.7:
        rows = data.decode("utf-8").split("\n")
        with contextlib.suppress(ValueError, IndexError):
            i = draw.choice([i for i, row in enumerate(rows) if row.strip()])
            rows[i] = _changed_json(json.loads(rows[i]), draw).decode("utf-8", "surrogatepass")
            return "\n".join(rows).encode("utf-8", "surrogatepass")
    if kind == "binary":
        return _changed_bytes(bytearray(data), draw)
    return _changed_text(data, draw)


def _changed_json(value: Any, draw: random.Random) -> bytes:
    holder = [value]
    places = list(_places(holder))
    parent, key = draw.choice(places)
    raw = None
    match draw.randrange(6):
        case 0 if isinstance(parent, dict):
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[draw.choice([*parent, "x", "training", "text"])] = draw.choice(WILD)
        case 2:
            raw, parent[key] = draw.choice(RAW), "@@raw@@"
        case 3 if isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
            parent[key] = draw.choice(
                [-parent[key], parent[key] * 2, parent[key] + 1, str(parent[key]), [parent[key]], 0]
            )
        case 4:
            other, name = draw.choice(places)
            with contextlib.suppress(ValueError, KeyError, IndexError):
                parent[key] = json.loads(json.dumps(other[name]))
        case _:
            parent[key] = draw.choice(WILD)
    if not holder:
        return b""
    text = json.dumps(holder[0], ensure_ascii=draw.random() < 0.5)
    return (text if raw is None else text.replace('"@@raw@@"', raw)).encode("utf-8", "surrogatepass")


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (holder, key) of a tree of values."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def _changed_text(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data) + 1)
    size = draw.choice([1, 1, 2, 5, 20])
    match draw.randrange(5):
        case 0:
            return data[:at] + data[at + size :]
        case 1:
            return data[:at] + draw.choice(RAW).encode("utf-8", "surrogatepass") + data[at:]
        case 2:
            return data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]
        case 3:
            other = draw.randrange(len(data) + 1)
            return data[:at] + data[other : other + 30] + data[at:]
        case _:
            return data[:at]


def _changed_bytes(data: bytearray, draw: random.Random) -> bytes:
    if not data:
        return bytes(data)
    head = min(len(data), 4096)
    at = draw.randrange(head) if draw.random() < 0.8 else draw.randrange(len(data))
    match draw.randrange(6):
        case 0:
            data[at] ^= 1 << draw.randrange(8)
        case 1:
            data[at] = draw.choice([0, 1, 127, 128, 255])
        case 2:
            size = draw.choice([4, 8])
            data[at : at + size] = draw.choice([0, 1, 2**31, 2**32 - 1, 2**20]).to_bytes(8, "little")[:size]
        case 3:
            return bytes(data[:at])
        case 4:
            other = draw.randrange(len(data))
            data[at : at + 16] = data[other : other + 16]
        case _:
            for _ in range(8):
                data[draw.randrange(head)] = draw.randrange(256)
    return bytes(data)


def run_reader(reader: Reader, count: int, seed: int, work: Path) -> tuple[Counter[str], list[str], float]:
    """How many ended how, what was bad, and the slowest in seconds."""
    ends: Counter[str] = Counter()
    bad: list[str] = []
    slowest, done = 0.0, 0
    template = work / reader.name / "template"
    shutil.rmtree(template.parent, ignore_errors=True)
    template.mkdir(parents=True)
    reader.make(template)
    for result in _child(reader, template, range(-1, 0), seed, work):
        if result["end"] != "passes":
            sys.exit(f"{reader.name}: the unchanged input does not pass: {result}")
    while done < count:
        for result in _child(reader, template, range(done, min(done + BATCH, count)), seed, work):
            ends[result["end"]] += 1
            slowest = max(slowest, result["seconds"])
            done = result["index"] + 1
            if result["end"] in BAD:
                bad.append(f"{reader.name} #{result['index']}: {result['end']} {result['said']}")
    return ends, bad, slowest


def _child(reader: Reader, template: Path, indices: range, seed: int, work: Path) -> Iterator[dict[str, Any]]:
    """Runs mutations in one child until it is through with them or ends otherwise."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        _work(reader, template, indices, seed, work, write)
        os._exit(0)
    os.close(write)
    next_index, started, buffer = indices.start, time.monotonic(), b""
    with os.fdopen(read, "rb", buffering=0) as pipe:
        while True:
            ready, _, _ = select.select([pipe], [], [], max(0.0, SECONDS + 2 - (time.monotonic() - started)))
            data = pipe.read(1 << 16) if ready else None
            if data is None or data == b"":
                hung = data is None
                if hung:
                    os.kill(pid, signal.SIGKILL)
                _, status = os.waitpid(pid, 0)
                if hung or next_index < indices.stop:
                    said = "" if hung else f"status {status}"
                    yield {
                        "index": next_index,
                        "end": "hung" if hung else "died",
                        "seconds": time.monotonic() - started,
                        "said": said,
                    }
                return
            buffer += data
            *rows, buffer = buffer.split(b"\n")
            for row in rows:
                yield json.loads(row)
                next_index, started = next_index + 1, time.monotonic()


def _work(reader: Reader, template: Path, indices: range, seed: int, work: Path, write: int) -> None:
    """In the child: each mutation from the template, its end written to the pipe."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(quiet, stream)
    place = work / reader.name / f"at-{os.getpid()}"
    for index in indices:
        draw = random.Random(f"{seed}/{reader.name}/{index}")
        shutil.copytree(template, place, symlinks=True)
        file = draw.choice(reader.files)
        if index >= 0:  # below: the unchanged input
            (place / file).write_bytes(mutate((place / file).read_bytes(), reader.kind, draw))
        started = time.monotonic()
        try:
            reader.after(place, file)
            result = _end(reader, place)
        except BaseException as error:
            result = {"end": "defect", "said": f"in the campaign itself: {error!r}"}
        result |= {"index": index, "seconds": round(time.monotonic() - started, 3)}
        if result["end"] in BAD:
            kept = work / "bad" / f"{reader.name}-{index}"
            shutil.copytree(place, kept, dirs_exist_ok=True, symlinks=True)
        shutil.rmtree(place, ignore_errors=True)
        os.write(write, json.dumps(result).encode() + b"\n")


def _end(reader: Reader, place: Path) -> dict[str, Any]:
    """How reading ends, as the command line would have it."""
    from qia3.console import complaint

    try:
        reader.act(place)
    except BaseException as error:
        told = complaint(error)
        if told is None:
            where = traceback.extract_tb(error.__traceback__)
            ours = next((f for f in reversed(where) if "/qia3/" in f.filename), where[-1])
            said = f"{type(error).__name__}: {str(error)[:200]!r} at {Path(ours.filename).name}:{ours.lineno}"
            return {"end": "defect", "said": said}
        return {"end": "clear", "said": told[0][:300]}
    return {"end": "passes", "said": ""}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--count", type=int, default=50_000, help="mutations over all readers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", nargs="*", help="only these")
    asked = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="fuzz-"))
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    os.environ.update(quiet | {"QIA3_CACHE": str(work / "cache")})
    from fuzz_readers import readers

    chosen = [r for r in readers(work) if not asked.readers or r.name in asked.readers]
    shares = sum(r.share for r in chosen)
    total: Counter[str] = Counter()
    found: list[str] = []
    print(f"| {'reader':24} | {'mutations':>9} | {'clear':>7} | {'passes':>7} | {'bad':>5} | {'slowest s':>9} |")
    print("|---|---:|---:|---:|---:|---:|")
    for reader in chosen:
        ends, bad, slowest = run_reader(reader, round(asked.count * reader.share / shares), asked.seed, work)
        total.update(ends)
        found += bad
        row = (sum(ends.values()), ends["clear"], ends["passes"], sum(ends[e] for e in BAD))
        print(
            f"| {reader.name:24} | {row[0]:9,} | {row[1]:7,} | {row[2]:7,} | {row[3]:5,} | {slowest:9.2f} |", flush=True
        )
    print(
        f"| {'all':24} | {total.total():9,} | {total['clear']:7,} | {total['passes']:7,} | {sum(total[e] for e in BAD):5,} | |"
    )
    for line in found[:40]:
        print(line)
    if not found:
        shutil.rmtree(work, ignore_errors=True)
        return
    print(f"{len(found)} bad ends; what was read is in {work / 'bad'}")
    sys.exit(1)


if __name__ == "__main__":
    main()
