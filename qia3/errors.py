"""The exception tree.

QIA3Error                 every failure that a user can mend: one clear line, exit code 2 at the command line
├── ConfigError           a build file, a command-line value: names the file, the line or the key, and the nearest right one
├── DataError             a file of examples: names the file and the line
├── BaseModelError        a base model that cannot be found, read or adapted
├── AdapterError          an adapter that does not fit: names every bad tensor
├── BundleError           a bundle that is broken, changed or not one
├── ParityError           torch and ONNX Runtime disagree past the limit: nothing is published
├── StorageError          the disk is full or a folder cannot be written
├── WorkerError           a process that was to train a task is gone, or some tasks of many failed
└── FitError              a device that must hold it cannot (exit code 3)
Interrupted               stopped by Ctrl-C or SIGTERM after a checkpoint was saved (exit code 130)
"""

from __future__ import annotations

QUOTED = 80  # characters of a user's text in a message


class QIA3Error(Exception):
    """A failure with one clear line: what is wrong and the way out."""

    exit_code = 2


class ConfigError(QIA3Error):
    """What was asked for is malformed or contradicts itself."""


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
    """A process that was to do something is gone; or some tasks of many failed."""


class FitError(QIA3Error):
    """It does not fit the device that it was said to fit."""

    exit_code = 3


class Interrupted(QIA3Error):
    """Stopped on request, with a checkpoint to resume from."""

    exit_code = 130


def first_line(error: BaseException) -> str:
    """What an exception of any library says, on one line; its type where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def shown(name: object) -> str:
    """A name out of a file, fit for one line: as it is where it can be printed, else with its escapes."""
    text = str(name)
    return text if text.isprintable() else repr(text)


def quoted(text: str) -> str:
    """What a user wrote, in quotes, fit for one line: of a long text the beginning."""
    return repr(text) if len(text) <= QUOTED else f"{text[:QUOTED]!r}... ({len(text):,} characters)"
