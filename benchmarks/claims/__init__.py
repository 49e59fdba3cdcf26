"""What the papers claim, and what was measured here: `python -m benchmarks.claims` writes docs/claims.md.

`papers.yaml` lists every item of the papers and where metarl answers it. `gorl.py`, `gorl_bases.py`, `gild.py`,
`por.py` and `pex.py` judge the claims that committed results can judge, by `verdict.py`'s rules; `cells.py` reads and
compares cells by their labels. `pictures.py`, `pictures_por.py` and `pictures_pex.py` draw them with `panels.py`, and
`page.py` writes the page. Results are kept as benchmarks/results/<suite>.parquet, where
`python -m benchmarks.claims --record runs/<suite>` puts them.
"""
