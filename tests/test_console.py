"""How a command ends."""

import os
import signal
from contextlib import suppress

import click
import pytest

from qia3.console import run_command
from qia3.progress import say


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_a_library_swallows_still_stops_a_command(number, capsys):
    """Python itself passes over what is raised in destructors and callbacks, and so do imports of some libraries."""

    @click.command()
    @click.argument("how")
    def verb(how: str) -> None:
        if how == "stopped":
            with suppress(KeyboardInterrupt):
                os.kill(os.getpid(), number)
        say("loading")
        click.echo("done")

    before = signal.getsignal(number)
    assert run_command(verb, ["stopped"]) == 130
    assert capsys.readouterr() == ("", "\nqia3: stopped\n")  # click ends the line of a ^C
    assert run_command(verb, ["well"]) == 0  # the next command is not stopped by it
    assert capsys.readouterr() == ("done\n", "loading\n")
    assert signal.getsignal(number) is before
