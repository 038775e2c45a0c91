"""Figures: panels of images, curves."""
