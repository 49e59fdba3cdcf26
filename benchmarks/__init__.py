"""Suites, their execution, and reports."""
