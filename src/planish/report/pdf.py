"""A page as PDF, printed by a Chromium where one is there."""

import os
import shutil
import subprocess
from pathlib import Path

from planish.core.errors import BadInput
from planish.storage.files import scratch, write_bytes

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
SECONDS = 180


def browser() -> str:
    """Return the Chromium that prints. Raises BadInput where there is none."""
    if found := next(filter(None, map(shutil.which, BROWSERS)), None):
        return found
    raise BadInput("a PDF is printed by Chromium, which is not found here: install it, or print the page in a browser")


def write_pdf(page: Path) -> Path:
    """Print a page into a PDF beside it, and return its path. Raises BadInput, RuntimeError where printing fails."""
    with scratch() as folder:
        made = folder / "page.pdf"
        options = [f"--print-to-pdf={made}", "--no-pdf-header-footer", f"--user-data-dir={folder / 'profile'}"]
        options += ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        options += ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # it refuses root otherwise
        command = [browser(), *options, page.resolve().as_uri()]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"Chromium did not print {page} within {SECONDS} seconds") from None
        if done.returncode or not made.is_file():
            last = next(reversed(done.stderr.strip().splitlines()), "it says nothing")
            raise RuntimeError(f"Chromium could not print {page}: {last}")
        write_bytes(made.read_bytes(), page.with_suffix(".pdf"))
    return page.with_suffix(".pdf")
