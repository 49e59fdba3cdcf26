"""Training in an environment, beside Stable-Baselines3: `python -m benchmarks.online`.

`settings.py` says what both sides are told, `ours.py` and `rival_sb3.py` make it of their own words and train.
`timing.py` lets live processes of both (`worker.py`, spoken to by `client.py`) advance in turns; `returns.py` reads
what they reached and compares it; `tables.py`, `page.py` and `picture.py` show both.
"""
