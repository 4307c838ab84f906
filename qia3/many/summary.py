"""All tasks of a run in one table: failures first, then the worst first, since these are what one looks for."""

from __future__ import annotations

from collections.abc import Sequence

from qia3.footprint.cells import Cell
from qia3.footprint.sections import Row, Section, section, table, warning
from qia3.many.outcome import Outcome

HEAD = ("task", "test lines", "before", "after", "loss", "steps", "seconds", "how it ended")
NOTE = "Share of each task's test lines that are right in torch, without its vectors and with them; the worst first."


def summary(outcomes: Sequence[Outcome]) -> Section:
    """Failures, then tasks by accuracy; tasks without scores come last."""
    ordered = sorted(outcomes, key=_rank)
    worse = [o.task for o in ordered if o.scores and o.scores.before is not None and o.scores.after < o.scores.before]
    bad = warning(f"Worse with their vectors than without: {', '.join(worse)}." if worse else "")
    note = NOTE if any(outcome.scores for outcome in outcomes) else None
    return section("training", "Training", note, bad, table(HEAD, [_row(o) for o in ordered], left=(0, len(HEAD) - 1)))


def _rank(outcome: Outcome) -> tuple[bool, float]:
    """Sort key of an outcome."""
    return outcome.failure is None, outcome.scores.after if outcome.scores else 2.0


def _row(outcome: Outcome) -> Row:
    scores, record = outcome.scores, outcome.record
    shares = [Cell("share", scores.before if scores else None), Cell("share", scores.after if scores else None)]
    figures = [
        Cell("digits", record.final_loss if record else None),
        Cell("count", record.steps if record else None),
        Cell("count", round(record.seconds) if record else None),
    ]
    ended = f"failed: {outcome.failure}" if outcome.failure else "already trained, kept" if outcome.kept else "trained"
    return [outcome.task, Cell("count", scores.n if scores else None), *shares, *figures, ended]
