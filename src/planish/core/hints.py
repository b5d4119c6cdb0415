"""What would be right, in words, where images, labels or outputs have a form that users often bring: "" for others."""

from collections.abc import Mapping

from torch import Tensor


def of_images(x: Tensor) -> str:
    """Word how vectors and volumes become images."""
    if x.ndim == 2:
        return "; vectors are images of one pixel, x[:, :, None, None], for a model that begins with x.flatten(1)"
    if x.ndim == 5:
        return "; volumes are images with their slices as channels, x.flatten(1, 2), for a model that unflattens them"
    return ""


def of_layout(x: Tensor) -> str:
    """Word how images whose channels seem to lie last become those that PyTorch's networks take."""
    last = x.shape[-1] in (1, 3, 4) and x.shape[1] not in (1, 3, 4)
    return "; do the channels lie last? give x.permute(0, 3, 1, 2)" if last else ""


def of_classes(values: Tensor, what: str) -> str:
    """Word how one column, one-hot rows and whole floats become classes (N,)."""
    if values.ndim == 2 and values.shape[1] == 1:
        return f"; one column: give {what}[:, 0]"
    if values.ndim == 2 and bool(((values != 0).sum(1) == 1).all()):
        return f"; one-hot rows: give {what}.argmax(1)"
    whole = values.ndim == 1 and values.is_floating_point() and bool((values == values.round()).all())
    return f"; give {what}.long()" if whole else ""


def of_range(low: int, high: int, classes: int) -> str:
    """Word how labels that count from 1 become those that count from 0."""
    return "; do they count from 1? give labels - 1" if low == 1 and high == classes else ""


def of_item(item: object) -> str:
    """Word how a loader of mappings becomes one of pairs."""
    if not isinstance(item, Mapping):
        return ""
    keys = ", ".join(map(repr, item))
    return f" with the keys {keys}: give [(item[A], item[B]) for item in loader], A the key of images, B that of labels"


def of_output(output: Tensor) -> str:
    """Word how to make logits of what is none."""
    if not output.is_floating_point():
        return (
            f" of {output.dtype}; one that returns classes: return torch.nn.functional.one_hot(classes, K) - 0.5, "
            "and attack it by noise, square and boundary, which need no gradient"
        )
    if output.ndim == 1 or output.shape[1:] == (1,):
        return "; of one output z for two classes, make two logits: torch.stack([torch.zeros_like(z), z], 1)"
    return ""
