# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""What is said to who trains an int4 model.

What this file offers:
    announce_training    that without an adapter only what is not int4 is trained
"""

from torch import nn
from transformers.utils import logging

logger = logging.get_logger(__name__)


def announce_training(model: nn.Module) -> None:
    """Warns, once, where a model without adapters has parameters that an optimizer would train."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if trained and not hasattr(model, "peft_config"):
        logger.warning_once(
            f"There is no adapter in this model: training it changes its {trained:,} parameters that "
            "are not int4 (norms, vision tower, a plain embedding), and no int4 matrix. For LoRA: "
            "peft.get_peft_model(model, LoraConfig(...)). To train nothing of the base: model.requires_grad_(False)."
        )
