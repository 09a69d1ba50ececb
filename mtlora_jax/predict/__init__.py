"""Predicts images with a model and visualizes the results."""
