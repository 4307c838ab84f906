"""`python -m qia3`: the same as the `qia3` command."""

from qia3.cli import main

main()
