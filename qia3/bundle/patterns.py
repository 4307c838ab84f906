"""Matches module paths against a regular expression from an untrusted file, as `re.fullmatch` does, within a time
limit.

Python's matcher backtracks: `(a|a)*b` takes twice as long with every additional letter, and a thread cannot be stopped.
So a child process does the matching (a bare interpreter, about 20 ms), which can be killed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection

SECONDS = 10.0
MATCH = """
import json, re, sys
pattern, names = json.load(sys.stdin)
try:
    matches = re.compile(pattern).fullmatch
except (re.error, OverflowError, RecursionError) as error:
    found = str(error) or type(error).__name__
else:
    found = [name for name in names if matches(name)]
json.dump(found, sys.stdout)
"""


def full_matches(pattern: str, names: Collection[str], seconds: float = SECONDS) -> set[str]:
    """Those of `names` that `pattern` matches as a whole. Raises ValueError if it is not a valid expression, or too
    slow.
    """
    try:
        child = subprocess.run(
            [sys.executable, "-I", "-S", "-c", MATCH],
            input=json.dumps([pattern, sorted(names)]).encode(),
            capture_output=True,
            timeout=seconds,
            check=True,
        )
        found: str | list[str] = json.loads(child.stdout)
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"matching it takes more than {seconds:g} seconds") from error
    except (subprocess.CalledProcessError, OSError, ValueError) as error:
        raise ValueError("it cannot be matched") from error
    if isinstance(found, str):
        raise ValueError(f"it is not a regular expression ({' '.join(found.split())})")
    return set(found)
