"""Configs and data descriptions of other trainers, read into a recipe and rows of ours."""
