"""Objectives, one file each; they know the learner's interfaces and no algorithm."""
