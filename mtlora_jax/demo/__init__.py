"""The first ten minutes: rendered scenes, and a comparison of two methods on them."""
