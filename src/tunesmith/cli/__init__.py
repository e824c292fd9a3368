"""The command line: one file per verb, each a thin function over the package.

`main.py` lists the commands, `output.py` decides where text and JSON go. Heavy imports stay inside the functions.
"""
