"""A training run: its step, loop, optimizer, checkpoints, history and recovery from faults."""
