"""Tasks, prompts, losses and the training run."""
