"""Where and how it is computed: the device, the type of autocast, the memory format."""

import os

import torch

from .config import UserError

FASTEST = torch.channels_last  # 1.6 times faster than NCHW in bf16 on a CPU


def pick_device(name: str = "auto") -> torch.device:
    """'auto' takes cuda, then mps, then cpu; a name that this machine lacks raises UserError."""
    have = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = next(k for k, exists in have.items() if exists) if name == "auto" else name
    if not have.get(name):
        raise UserError(f"device={name!r} is not on this machine; it has {', '.join(k for k in have if have[k])}")
    torch.backends.cudnn.benchmark = True  # crops have one size
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32: two cards write the same SR
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # started by torchrun: one of several processes, each with its GPU
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        return torch.device(name, int(os.environ["LOCAL_RANK"]))
    return torch.device(name)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The type for autocast, None for float32. 'auto': bf16 where the hardware computes it, fp16 on an older GPU."""
    if precision != "auto":
        return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else None
    return None
