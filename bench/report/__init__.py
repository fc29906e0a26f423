"""Builds docs/benchmarks/index.md and index.html from the records beside them."""
