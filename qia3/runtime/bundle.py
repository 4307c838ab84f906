"""Where 0.1.0 had an opened bundle; it is in qia3.bundle now. Code that was written for 0.1.0 goes on."""

from qia3.bundle.opened import Bundle as Bundle
