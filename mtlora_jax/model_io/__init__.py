"""Model folders: reading, writing, adapters, merging, adding and removing tasks, cards."""
