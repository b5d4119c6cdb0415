"""Data: readers of image sets, and batches that stay on the device. Light to import."""

from planish.data.source import load

__all__ = ["load"]


def __dir__() -> list[str]:
    return __all__
