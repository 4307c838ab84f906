"""The `qia3` command: one function per verb, in one file per group of verbs.

A verb reads its options, calls the package and prints the result. Each imports what it needs when it runs, so `qia3
--help` is fast and the verbs for devices (run, eval, bench, report of a bundle) never import torch.

Results go to stdout, as text or, with --json, as JSON from the same object; progress goes to stderr. An error that the
user can fix is one line on stderr, `qia3: ...`, with exit code 2; Ctrl-C gives 130. QIA3_TRACEBACK=1 in the environment
shows the traceback instead.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from qia3 import __version__
from qia3.cli.asking import evaluate, run, serve
from qia3.cli.carrying import adapter
from qia3.cli.learning import learn
from qia3.cli.making import build, export, train
from qia3.cli.options import Verbs, example
from qia3.cli.paging import page
from qia3.cli.telling import bench, devices, report, targets
from qia3.console import run_command


@click.group(
    name="qia3",
    cls=Verbs,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=example("qia3 build examples/home-intents/qia3.toml"),
)
@click.version_option(__version__, prog_name="qia3")
def qia3() -> None:
    """4-bit language models, adapted to many tasks with IA³ vectors, for small devices with ONNX Runtime."""


for verb in (build, train, export, run, evaluate, bench, report, serve, page, learn, adapter, targets, devices):
    qia3.add_command(verb)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command: never returns."""
    sys.exit(run_command(qia3, sys.argv[1:] if arguments is None else arguments))
