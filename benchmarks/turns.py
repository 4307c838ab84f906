"""What one turn of a server's thread costs while a text is written and others are ranked: processor time, turn by turn.

    python benchmarks/turns.py dist/home-intents

A row that writes waits for one turn between two of its tokens. In milliseconds of processor time with one thread, which
other work on the machine hardly changes: the turn alone, the turn in which a prompt of 60 tokens is run, and those of
the ranking after it, with 8 and with 48 choices of two to four tokens.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from qia3.bundle.opened import Bundle
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.engine import Engine
from qia3.server.batcher import Batcher
from qia3.server.jobs import Event, Job

RANKINGS, PROMPT = 6, 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("bundle", type=Path)
    engine = Engine(Bundle.open(parser.parse_args().bundle), threads=1)
    vectors = AdapterBank(engine.bundle).vectors(engine.bundle.adapters[0])
    end = engine.tokenizer.id_to_token(engine.bundle.stop_tokens[0])
    rng = np.random.default_rng(0)

    def job(**what: object) -> Job:
        tokens = rng.integers(300, 9000, PROMPT).tolist()
        return Job(tokens, vectors, told.append, **what)  # type: ignore[arg-type]

    for count in (2, 12):
        words = [f"{word} {i}" for i in range(count) for word in ("lamp", "door", "music", "timer")]
        choices = [list(engine.tokens.answer(word, end or "")) for word in words]
        told: list[Event] = []
        line = Batcher(engine, 8)
        line.submit(job(limit=400))
        for _ in range(6):
            turn(line)
        alone, prompts, others, whole = [turn(line) for _ in range(8)], [], [], []
        for _ in range(RANKINGS):
            line.submit(job(choices=choices))
            found = [turn(line)]
            while line.in_use > 1:
                found.append(turn(line))
            prompts.append(found[0])
            others += found[1:]
            whole.append(sum(found))
        print(
            f"{len(words):2} choices: alone {statistics.median(alone):.0f} ms; with the prompt "
            f"{statistics.median(prompts):.0f} ({max(prompts):.0f} at most); a ranking's other turns "
            f"{statistics.median(others):.0f} ({max(others):.0f} at most); all of one {statistics.median(whole):.0f}"
        )


def turn(line: Batcher) -> float:
    begun = time.process_time()
    line._turn()
    return 1e3 * (time.process_time() - begun)


if __name__ == "__main__":
    main()
