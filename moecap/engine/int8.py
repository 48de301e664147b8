"""Weight-only int8: symmetric, one scale per output row, activations untouched.

Covers the routed experts (which quantisers of `nn.Linear` skip, fused as they are) and the linear layers of mixers,
shared experts and dense FFNs. Router, norms, embedding and lm_head stay as they are: small, or sensitive.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from moecap.engine.experts import INT8, SCALES, ResidentRows, int8_linear, take_over_experts
from moecap.model.shape import classify_parameters

QUANTISED = {"mixer", "shared_expert", "dense_ffn"}
"""Tensor classes whose linear layers are replaced."""
LARGEST = 127


class Int8Linear(nn.Module):
    """A linear layer with an int8 weight [out, in], a float32 scale per output row, and the bias it had."""

    weight_int8: torch.Tensor
    weight_scales: torch.Tensor

    def __init__(self, original: nn.Linear) -> None:
        super().__init__()
        weight, scales = quantise_rows(original.weight.data)
        self.register_buffer(f"weight{INT8}", weight)
        self.register_buffer(f"weight{SCALES}", scales)
        self.bias = original.bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """inputs [..., in] -> [..., out], in the inputs' dtype."""
        flat = int8_linear(inputs.reshape(-1, inputs.shape[-1]), self.weight_int8, self.weight_scales)
        outputs = flat.reshape(*inputs.shape[:-1], -1)
        return outputs if self.bias is None else outputs + self.bias


def quantise_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """weight [..., out, in] -> int8 of the same shape and float32 scales [..., out]; weight ~ int8 x scale.

    The scale of a row is its largest magnitude / 127; of a row of zeros, 1.
    """
    scales = weight.float().abs().amax(dim=-1) / LARGEST
    scales = torch.where(scales == 0, torch.ones_like(scales), scales)
    return (weight.float() / scales[..., None]).round().to(torch.int8).contiguous(), scales


def quantise_int8(net: Any) -> None:
    """Replace the weights in place and free them. UnsupportedModelError for experts that can't be reached."""
    classes = classify_parameters(net)
    for path, rows in take_over_experts(net).items():
        rows.tensors = _quantised(rows, transposed=net.get_submodule(path).is_transposed)
    for path, module in list(net.named_modules()):
        if isinstance(module, nn.Linear) and classes.get(f"{path}.weight", ("", None))[0] in QUANTISED:
            net.set_submodule(path, Int8Linear(module))


def _quantised(rows: ResidentRows, *, transposed: bool) -> dict[str, torch.Tensor]:
    found = {}
    for name, tensor in rows.tensors.items():
        if tensor.dim() == 3:
            found[name + INT8], found[name + SCALES] = quantise_rows(tensor.mT if transposed else tensor)
        else:
            found[name] = tensor
    return found
