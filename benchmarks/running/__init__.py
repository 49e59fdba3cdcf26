"""`metarl bench`: suites, what can be known before they run, and their execution."""
