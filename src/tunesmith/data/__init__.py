"""From a file to a Dataset: read, check, split, and keep as an immutable version with a row ledger."""
