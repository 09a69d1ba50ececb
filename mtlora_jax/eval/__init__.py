"""Scores and pictures of a model on a split."""
