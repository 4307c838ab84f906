"""Device profiles, one TOML file each, every figure with its source: memory, bandwidth, cores.

Read by `qia3.footprint.devices`; what a profile holds is written in `qia3.footprint.device`.
"""
