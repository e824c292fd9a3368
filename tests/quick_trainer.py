"""The real `tunesmith train`, with its proof in the same process instead of a fresh one, which takes seconds to import
torch: `python -m tests.quick_trainer RECIPE --out RUN --json`.
"""

from __future__ import annotations

import sys

import pytest

from tests.train.conftest import prove_here
from tunesmith.cli.main import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    with pytest.MonkeyPatch.context() as patch:
        prove_here(patch)
        main()
