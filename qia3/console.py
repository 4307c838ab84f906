"""How a command prints and exits: results on stdout, progress and errors on stderr, one line and an exit code.

0 success, 2 a user error or a problem of the environment, 130 stopped by Ctrl-C or SIGTERM. A bug of qia3 is one line
as well, exit code 1, with its traceback in a file that the line names; QIA3_TRACEBACK=1 prints it instead.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import click

from qia3.errors import QIA3Error, first_line
from qia3.progress import ask_to_stop, forget_the_stop

DEFECT = 1  # exit code of a bug of qia3
BUILD_PACKAGES = {
    "accelerate",
    "gguf",
    "matplotlib",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "torch",
    "transformers",
}


def print_result(value: Any, text: str, as_json: bool) -> None:
    """Prints `value` as JSON, or `text`, which says the same in words."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False) if as_json else text)


def fact_lines(facts: dict[str, Any]) -> str:
    """One fact per line."""
    shown = {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for key, value in facts.items()
    }
    return "\n".join(f"{key.replace('_', ' ')}: {value}" for key, value in shown.items())


def progress_on_stderr() -> contextlib.AbstractContextManager[Any]:
    """Sends a build's progress to stderr, since it is not the result.

    The libraries' own bars and notices are silenced: qia3.progress shows what matters.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it asks for a package that is not needed here
    return contextlib.redirect_stdout(sys.stderr)


def complaint(error: BaseException) -> tuple[str, int] | None:
    """The message for the user and the exit code; None for a bug of qia3, which needs a traceback."""
    match error:
        case QIA3Error():
            return str(error), error.exit_code
        case click.UsageError() if error.ctx is not None:
            return f"{error.format_message()} See `{error.ctx.command_path} --help`.", error.exit_code
        case click.ClickException():
            return error.format_message(), error.exit_code
        case click.Abort() | KeyboardInterrupt():
            return "stopped", 130
        case ModuleNotFoundError() if (error.name or "").split(".")[0] in BUILD_PACKAGES:
            return f'this needs {error.name}, which is not installed: pip install "qia3[build]"', 2
        case OSError() if _of_stdout(error):
            return f"cannot write to standard output: {error.strerror or first_line(error)}", 2
        case OSError() if error.errno == errno.ENOSPC:
            return "the disk is full: nothing was published; free some space and run the same command again", 2
        case OSError():
            return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else first_line(error), 2
        case MemoryError():
            return "there is not enough memory; nothing was published; close other programs or use a smaller base", 2
    return None


def _of_stdout(error: BaseException) -> bool:
    """Whether it came from printing a result: all of them, and help, go through click.echo."""
    return any(frame.f_code is click.echo.__code__ for frame, _ in traceback.walk_tb(error.__traceback__))


def _close_stdout() -> None:
    """Drops what could not be written: Python would try again at its end, and complain in its own words."""
    with contextlib.suppress(OSError, ValueError):  # a stand-in of a test has no file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _defect(error: BaseException) -> str:
    """One line for a bug of qia3. The traceback goes to a file, so that it can be reported."""
    text = "".join(traceback.format_exception(error))
    with tempfile.NamedTemporaryFile("w", prefix="qia3-", suffix=".txt", delete=False, encoding="utf-8") as file:
        file.write(text.encode("utf-8", "backslashreplace").decode())
    return f"this is a bug of qia3, please report it with {file.name}: {type(error).__name__}: {first_line(error)}"


@contextlib.contextmanager
def _stopping_cleanly() -> Iterator[None]:
    """Makes SIGTERM end a verb as Ctrl-C does, so that half-written folders are removed.

    Training handles signals itself meanwhile.
    """
    forget_the_stop()
    here = threading.current_thread() is threading.main_thread()
    previous = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM) if here}
    for name, handler in previous.items():
        if handler != signal.SIG_IGN:  # nohup, and shells that start a command in the background
            signal.signal(name, lambda *_: ask_to_stop())
    try:
        yield
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)


def run_command(command: click.Command, arguments: Sequence[str]) -> int:
    """Runs one command line and says how it ended."""
    try:
        with _stopping_cleanly():
            code = command.main(args=list(arguments) or ["--help"], prog_name=command.name, standalone_mode=False)
    except BaseException as error:  # a panic of a Rust library is not an Exception
        if os.environ.get("QIA3_TRACEBACK") or isinstance(error, SystemExit | GeneratorExit):
            raise
        if isinstance(error, OSError) and _of_stdout(error):
            _close_stdout()
        message, code = complaint(error) or (_defect(error), DEFECT)
        print("qia3: " + "; ".join(line.strip() for line in message.splitlines() if line.strip()), file=sys.stderr)
    return code if isinstance(code, int) else 0
