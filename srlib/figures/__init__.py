"""Figures: panels of images, curves, runs beside each other."""
