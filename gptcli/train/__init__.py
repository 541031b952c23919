"""The training loop, its step, loss, optimizers and checkpoints, and a run with its directory."""
