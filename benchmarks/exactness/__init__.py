"""Every gradient estimator against exact values on problems with closed forms: `python -m benchmarks.exactness`."""
