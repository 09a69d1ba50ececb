"""Measurements of this machine: what is measured, one file each, and what they share. The command is in `__main__`."""
