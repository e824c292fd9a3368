"""Data like code: row numbers, differences, decisions, where a row came from."""
