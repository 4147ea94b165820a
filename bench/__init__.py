"""One command a claim: `python -m bench.NAME` measures, prints a table, and a last line of JSON."""
