"""What the papers claim, and what was measured here: `python -m benchmarks.claims` writes docs/claims.md.

`papers.yaml` lists every item of the papers and where metarl answers it. `gorl.py` judges the claims that committed
results can judge, by `verdict.py`'s rules; `pictures.py` draws them and `page.py` writes the page. Results are kept as
benchmarks/results/<suite>.parquet, where `python -m benchmarks.claims --record runs/<suite>` puts them.
"""
