"""Device profiles, one TOML file each, every figure with its source: memory, bandwidth, cores.

Read by `qia3.footprint.devices`.
"""
