"""Trained recipes: policies of metarl's own SAC, cut out of training runs and shipped, and the data that they give."""
