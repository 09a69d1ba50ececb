"""Demo: renders scenes and compares two methods on them."""
