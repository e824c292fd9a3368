"""Files of any kind to decoded rows, one at a time."""
