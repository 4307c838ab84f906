"""The tree of exceptions.

QIA3Error                 every failure that a user can fix: one clear line, exit code 2 on the command line
├── ConfigError           a build file, a command-line value: names the file, the line or the key, and the nearest valid one
├── DataError             a file of examples: names the file and the line
├── BaseModelError        a base model that cannot be found, read or adapted
├── AdapterError          an adapter that does not fit: names every bad tensor
├── BundleError           a bundle that is broken, changed or not one
├── ParityError           torch and ONNX Runtime disagree past the limit: nothing is published
├── StorageError          the disk is full or a folder cannot be written
├── WorkerError           a process that was to train a task died, or some of many tasks failed
└── FitError              it does not fit a device given with --must-fit (exit code 3)
Interrupted               stopped by Ctrl-C or SIGTERM after a checkpoint was saved (exit code 130)
"""

from __future__ import annotations

QUOTED = 80  # characters of a user's text in a message


class QIA3Error(Exception):
    """A failure described in one clear line: what is wrong, and what to do."""

    exit_code = 2


class ConfigError(QIA3Error):
    """The request is malformed or contradicts itself."""


class DataError(QIA3Error):
    """A file of examples is missing, empty or mislabelled."""


class BaseModelError(QIA3Error):
    """The base model cannot be found, read or adapted."""


class AdapterError(QIA3Error):
    """An adapter does not fit its base; lists every bad tensor."""


class BundleError(QIA3Error):
    """A folder is not a whole, unchanged bundle."""


class ParityError(QIA3Error):
    """torch and ONNX Runtime disagree past the limit."""


class StorageError(QIA3Error):
    """The disk is full or a folder cannot be written."""


class WorkerError(QIA3Error):
    """A worker process died, or some of many tasks failed."""


class FitError(QIA3Error):
    """It does not fit a device that it must fit."""

    exit_code = 3


class Interrupted(QIA3Error):
    """Stopped on request, with a checkpoint to resume from."""

    exit_code = 130


def first_line(error: BaseException) -> str:
    """The first line of any exception's message, or its type if it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def shown(name: object) -> str:
    """A name from a file, fit for one line: as it is if printable, otherwise with escapes."""
    text = str(name)
    return text if text.isprintable() else repr(text)


def quoted(text: str) -> str:
    """A user's text in quotes, fit for one line; a long text is cut."""
    return repr(text) if len(text) <= QUOTED else f"{text[:QUOTED]!r}... ({len(text):,} characters)"
