"""Authors' own code beside ours: how it is loaded, how the two are compared, and the page docs/official.md."""
