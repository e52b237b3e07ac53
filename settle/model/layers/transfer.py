"""Copies between the host and the device that computes, so that the host does not wait for the device.

A copy from ordinary memory, and every question about the numbers of a tensor, waits until a card has done all that was
queued. So copies go through pinned memory, and what the host itself knew of a batch (bounds, targets) is kept there.
"""

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_host_copies = WeakTensorKeyDictionary()  # tensor of a device → the same numbers on the CPU


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the CPU to `device`; the tensor itself where that is the CPU. Nobody writes to either later."""
    if device.type == "cpu":
        return tensor
    is_cuda = device.type == "cuda"
    out = (tensor.pin_memory() if is_cuda else tensor).to(device, non_blocking=is_cuda)
    _host_copies[out] = tensor
    return out


def on_host(tensor: Tensor) -> Tensor:
    """Return a tensor's numbers on the CPU, without waiting for the device where `to_device` brought them there."""
    if tensor.device.type == "cpu":
        return tensor
    known = _host_copies.get(tensor)
    return tensor.cpu() if known is None else known
