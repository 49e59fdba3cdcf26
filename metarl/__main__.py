"""`python -m metarl`."""

from metarl.cli import main

main()
