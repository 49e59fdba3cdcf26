"""Is this learned loss sound? What `metarl check` measures, as functions that return Findings."""

from metarl.checking.checks import check, names
from metarl.checking.findings import Finding, Report
from metarl.checking.small import Plan

__all__ = ["Finding", "Plan", "Report", "check", "names"]
