"""The command that shows what a model sees in images."""
