"""Decide: which way of answering is the cheapest that is good enough, measured on rows that chose nothing."""
