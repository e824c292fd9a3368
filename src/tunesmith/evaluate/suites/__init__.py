"""Suites: rows with a way to measure a contender on them. Shipped extracts stand in `extracts/`, each with its source.

Not here: before and after (regress). Called by cli.regress through `catalog.open_suites`.
"""
