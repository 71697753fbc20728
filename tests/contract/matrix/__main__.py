"""``python -m tests.contract.matrix``: run the matrix and write docs/types.md."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

os.environ["WRITE_TYPES"] = "1"
sys.exit(pytest.main([str(Path(__file__).parents[1] / "test_matrix.py"), "-q", "-m", ""]))
