"""How a command talks and ends: results on stdout, progress and complaints on stderr, one line and an exit code.

0 done, 2 a mistake or a fault of the surroundings, 130 stopped by Ctrl-C or SIGTERM. A fault of ours is one line as
well, exit code 1, with its traceback in a file that the line names; QIA3_TRACEBACK=1 shows it instead.
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

DEFECT = 1  # exit code of a fault of ours
BUILD_PACKAGES = {
    "accelerate",
    "bitsandbytes",
    "gguf",
    "matplotlib",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "peft",
    "torch",
    "transformers",
}


def print_result(value: Any, text: str, as_json: bool) -> None:
    """`value` as JSON or `text`, which says the same to people."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False) if as_json else text)


def fact_lines(facts: dict[str, Any]) -> str:
    """One fact a line."""
    shown = {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for key, value in facts.items()
    }
    return "\n".join(f"{key.replace('_', ' ')}: {value}" for key, value in shown.items())


def progress_on_stderr() -> contextlib.AbstractContextManager[Any]:
    """What a build prints as it goes is not its result.

    The libraries' own bars and notices stay away: qia3.progress shows what matters.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it names a package that nothing here needs
    return contextlib.redirect_stdout(sys.stderr)


def complaint(error: BaseException) -> tuple[str, int] | None:
    """What to tell the user and the exit code; None for a fault of ours, which deserves its traceback."""
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
            return f"standard output cannot be written: {error.strerror or first_line(error)}", 2
        case OSError() if error.errno == errno.ENOSPC:
            return "the disk is full: nothing was published; free some space and run the same command again", 2
        case OSError():
            return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else first_line(error), 2
        case MemoryError():
            return "there is not enough memory; nothing was published; close other programs or take a smaller base", 2
    return None


def _of_stdout(error: BaseException) -> bool:
    """Whether it came of telling a result: all of them go out by click.echo, help too."""
    return any(frame.f_code is click.echo.__code__ for frame, _ in traceback.walk_tb(error.__traceback__))


def _defect(error: BaseException) -> str:
    """One line for a fault of ours. The traceback goes to a file, so that it can be reported."""
    text = "".join(traceback.format_exception(error))
    with tempfile.NamedTemporaryFile("w", prefix="qia3-", suffix=".txt", delete=False, encoding="utf-8") as file:
        file.write(text.encode("utf-8", "backslashreplace").decode())
    return f"a defect of qia3, please report it with {file.name}: {type(error).__name__}: {first_line(error)}"


@contextlib.contextmanager
def _stopping_cleanly() -> Iterator[None]:
    """SIGTERM ends a verb as Ctrl-C does, so that half-written folders are taken away.

    Training listens for itself meanwhile.
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
    except BaseException as error:  # a panic of a library in Rust is no Exception
        if os.environ.get("QIA3_TRACEBACK") or isinstance(error, SystemExit | GeneratorExit):
            raise
        message, code = complaint(error) or (_defect(error), DEFECT)
        print("qia3: " + "; ".join(line.strip() for line in message.splitlines() if line.strip()), file=sys.stderr)
    return code if isinstance(code, int) else 0
