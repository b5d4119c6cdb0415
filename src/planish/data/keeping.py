"""Whether training images are kept in memory or streamed: one rule."""

from typing import Literal

from planish.core.errors import BadInput
from planish.data.images import Images
from planish.data.listing import Listing, OnCorrupt, refuse

Stream = Literal["auto", "always", "never"]
MOST_BYTES = 2 * 2**30
"""Decoded pixels that are kept in memory unless told otherwise."""
PROBED = 64
"""Images whose size stands for that of all."""


def kept(
    found: Images | Listing,
    stream: Stream = "auto",
    size: int | None = None,
    on_corrupt: OnCorrupt = refuse,
    *,
    resolutions: bool = False,
) -> Images | Listing:
    """Return the images in memory, or the listing if they are to be streamed.

    "auto": streamed if a size or resolutions are given, or if 64 images spread over the set say that all of it would
    take more than 2 GiB. "never": in memory, with a size as its centre cut. Sets that are no image files are always in
    memory. Raises BadInput for a size, resolutions or stream = "always" that the set cannot have.
    """
    if isinstance(found, Images):
        if size is not None or resolutions or stream == "always":
            raise BadInput(
                f"{found.name} is read as a whole: data.size, data.resolutions and data.stream are for image files "
                "(folder, parquet, imagenet, tiny-imagenet)"
            )
        return found
    if stream == "never" and resolutions:
        raise BadInput('data.resolutions need streamed images: set data.stream = "auto"')
    if stream == "never":
        return found.images(size, on_corrupt)
    if stream == "always" or size is not None or resolutions or _bytes(found, on_corrupt) > MOST_BYTES:
        return found
    return found.images(None, on_corrupt)


def _bytes(listing: Listing, on_corrupt: OnCorrupt) -> int:
    """Return the estimated size of all images decoded. Raises BadInput if they differ in size."""
    return len(listing) * listing.sample(PROBED).images(None, on_corrupt).x[0].numel()
