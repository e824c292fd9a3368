"""Measure contenders on held-out rows: scorers, paired statistics, the evaluation and its report."""
