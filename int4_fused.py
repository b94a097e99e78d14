# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""Which classes compute what is around the int4 matrices: the only place that exchanges the classes of modules.

What this file offers:
    use_fused_modules    gives the modules of a Gemma 3 the classes for the backend and the device that it is on
"""

from torch import nn
from transformers.models.siglip.modeling_siglip import SiglipVisionModel

from .int4_cpu_fused import FUSED as CPU_FUSED
from .int4_cpu_fused import FUSED_TOWER as CPU_FUSED_TOWER
from .int4_cpu_native import NativeCpu
from .int4_gpu_fused import FUSED as GPU_FUSED
from .int4_gpu_triton import Triton
from .int4_layers import Int4Linear
from .int4_prefill import FUSED as PREFILL

# Backend -> class of transformers -> the class that takes its place. The first backend that a model is on decides.
FUSED = {Triton: GPU_FUSED, NativeCpu: CPU_FUSED}
# Each of those classes -> what it took the place of.
ORIGINAL = {new: old for table in (*FUSED.values(), CPU_FUSED_TOWER, PREFILL) for old, new in table.items()}


def use_fused_modules(model: nn.Module) -> None:
    """Exchange the classes of a Gemma 3's modules: call it after loading and after each move.

    The language model reads long prompts in chunks, and gets the fused classes of its backend; the vision tower those
    for a CPU, which elsewhere compute as before.
    """
    for module in model.modules():
        module.__class__ = ORIGINAL.get(type(module), type(module))
    backends = {module.backend for module in model.modules() if isinstance(module, Int4Linear)}
    _exchange(model, PREFILL)
    for backend, classes in FUSED.items():
        if any(issubclass(used, backend) for used in backends):
            _exchange(model, classes)
            break
    for tower in (module for module in model.modules() if isinstance(module, SiglipVisionModel)):
        _exchange(tower, CPU_FUSED_TOWER)


def _exchange(model: nn.Module, classes: dict[type, type]) -> None:
    for module in model.modules():
        module.__class__ = classes.get(type(module), type(module))
