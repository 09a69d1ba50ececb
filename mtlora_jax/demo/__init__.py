"""Demo: compares two methods on rendered scenes."""
