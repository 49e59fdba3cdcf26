"""Problems with known answers, one file each: `metarl solve NAME`; all: `python -m benchmarks.known_answers`."""
