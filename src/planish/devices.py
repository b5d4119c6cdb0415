"""Which device a command runs on."""

from planish.errors import BadInput


def device_of(name: str) -> str:
    """Return the device; "auto" is a GPU if there is one, else the CPU. Raises BadInput if it cannot be used."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"device '{name}' cannot be used here: {str(error).splitlines()[0]}") from error
    return name
