"""The site's own programs can be imported, which are no part of the package, and what drives a browser."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT / "website"), str(ROOT / "tests" / "report")]
