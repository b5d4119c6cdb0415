"""Sums over the pixels of an image that are met by sorting: a filled knapsack, sizes that are cut by one amount."""

import torch
from torch import Tensor


def filled(room: Tensor, weight: Tensor, worth: Tensor, amount: Tensor) -> Tensor:
    """Return how much of each room (N, D) is used, the largest weight first, until use times worth is an amount.

    worth: (N, D), at least 0; what is worth nothing is not used. amount: (N, 1). All is used where it does not suffice.
    """
    order = weight.argsort(dim=1, descending=True, stable=True)
    room_there, worth_there = room.gather(1, order), worth.gather(1, order).double()
    gain = (worth_there * room_there).clamp(max=amount)
    left = (amount - (gain.cumsum(1) - gain)).clamp(min=0)
    used = torch.where(worth_there > 0, torch.minimum(left / worth_there, room_there), 0.0)
    return torch.zeros_like(room).scatter(1, order, used.to(room.dtype))


def cut_to(size: Tensor, room: Tensor, reach: Tensor) -> Tensor:
    """Return the least cut (N, 1), not below 0, with sum min(max(size - cut, 0), room) <= reach, for (N, D) numbers.

    The sum is piecewise linear in the cut: a pixel begins to shrink at size - room, and is gone at size.
    """
    kinks, order = torch.cat([size, (size - room).clamp(min=0)], 1).sort(1, descending=True)
    sign = torch.where(order < size.shape[1], 1.0, -1.0).double()
    slope, height = sign.cumsum(1), (sign * kinks).cumsum(1)
    below = (height - slope * kinks < reach).sum(1, keepdim=True)
    at = (below - 1).clamp(min=0)
    cut = (height.gather(1, at) - reach) / slope.gather(1, at)
    cut = torch.where(below == 0, kinks[:, :1].double(), torch.where(below == kinks.shape[1], 0.0, cut))
    return cut.clamp(min=0).to(size.dtype)
