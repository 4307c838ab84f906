"""Kept for code written for 0.1.0: the opened bundle is now in qia3.bundle."""

from qia3.bundle.opened import Bundle as Bundle
