"""What would make a data set better: more rows, of which kind, in which style."""
