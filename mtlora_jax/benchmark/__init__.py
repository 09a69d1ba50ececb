"""Speed and memory on this machine: one file per benchmark, and what they share. The command is in `__main__`."""
