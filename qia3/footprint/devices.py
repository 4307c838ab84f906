"""Devices by name: those in devices/ (shipped as qia3.devices), this machine, and the user's own files.

raspberry-pi-5     a profile that ships; `qia3 devices` lists them
here               this machine, probed (here.py); with the results of `qia3 bench --calibrate`, if any (calibrated.py)
./my.toml          a file: anything that ends in .toml or contains a folder
"""

from __future__ import annotations

import os
from pathlib import Path

from qia3.errors import ConfigError
from qia3.footprint.calibrated import with_calibration
from qia3.footprint.device import Device, parse_device
from qia3.footprint.here import HERE, probe
from qia3.parse import read_text
from qia3.profiles import profile_names, profile_text

OTHERS = f"{HERE!r} is this machine; give your own profile by its path (./my.toml)"
LARGEST = 2**20


def load_device(name: str) -> Device:
    """The device called `name`, `here`, or from a file. Raises ConfigError if there is none."""
    if name == HERE:
        return with_calibration(probe())
    if name.endswith(".toml") or os.sep in name or "/" in name:
        return _of_file(Path(name))
    try:
        text = profile_text("qia3.devices", name, "device")
    except ConfigError as error:
        raise ConfigError(f"{error}; {OTHERS}") from error
    return parse_device(name, text)


def _of_file(path: Path) -> Device:
    try:
        text = read_text(path, ConfigError, largest=LARGEST)
    except ConfigError as error:
        raise ConfigError(f"the device profile: {error}") from error
    return parse_device(path.stem, text, str(path))


def load_devices() -> list[Device]:
    """Every device that ships, sorted by name."""
    return [load_device(name) for name in profile_names("qia3.devices")]
