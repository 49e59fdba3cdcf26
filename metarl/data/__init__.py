"""Offline data: packed transitions, Minari datasets, and recipes that make datasets on this machine."""

from metarl.data.sources import DataSource, load
from metarl.data.transitions import Card, Layout, Statistics, Transitions, pack

__all__ = ["Card", "DataSource", "Layout", "Statistics", "Transitions", "load", "pack"]
