"""Where the time of a run goes, end to end: `python -m benchmarks.profile`, which writes docs/profile.md.

`accounts.py` keeps CPU time by part, `run.py` trains a real experiment under such an account, `step.py` looks into one
compiled step; `shares.py` makes figures of a whole run from what was measured, `page.py` and `picture.py` show them.
"""
