"""Where planish keeps its own files."""

import os
from pathlib import Path


def home() -> Path:
    """Return $PLANISH_HOME, else the user's cache folder for planish. It need not exist."""
    if chosen := os.environ.get("PLANISH_HOME"):
        return Path(chosen).expanduser()
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("planish"))
