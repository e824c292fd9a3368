"""tunesmith: from a person's examples to a fine-tuned model that is measured, proved and served.

Importing the package does nothing; `tunesmith.cli` is the command line, the nouns live in the modules
named in docs/tour.md.
"""

__version__ = "0.1.0"
