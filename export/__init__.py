"""Export targets, one TOML file each: what the ONNX graph looks like for one kind of machine.

Read by `qia3.targets`.
"""
