"""From examples to the batches of a training run, with numpy alone: for torch (qia3.train) and for a device (qia3.learn)."""
