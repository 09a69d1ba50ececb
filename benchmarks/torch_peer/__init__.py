"""MTLoRA in plain PyTorch, and its comparison with ours; the command is `benchmarks/peer.py`."""
