"""What can be wrong with rows that parse: one module a kind, each a generator of findings."""
