# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""What config.json says of this code, and the configuration as it is read where the code is trusted.

What this file offers:
    PICTURES, TEXT                    the auto_map of a repo: transformers' auto class -> ours, for both kinds of model
    Gemma3Config, Gemma3TextConfig    AutoConfig's entries in it

Trainers such as TRL read the configuration, and then take that class of transformers which has the name in its
`architectures`: the stock one, which cannot load these weights. Only where there is no such name do they ask the auto
classes. So a configuration that is read with trust has a name of ours in front of the stock one. The file has the stock
one alone, which other engines know.
"""

from transformers import Gemma3Config as StockConfig
from transformers import Gemma3TextConfig as StockTextConfig

PICTURES = {
    "AutoConfig": "int4_config.Gemma3Config",
    "AutoModel": "modeling_gemma3_int4.Gemma3Model",
    "AutoModelForCausalLM": "modeling_gemma3_int4.Gemma3ForConditionalGeneration",
    "AutoModelForImageTextToText": "modeling_gemma3_int4.Gemma3ForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_gemma3_int4.Gemma3ForConditionalGeneration",
}
TEXT = {
    "AutoConfig": "int4_config.Gemma3TextConfig",
    "AutoModel": "modeling_gemma3_int4.Gemma3TextModel",
    "AutoModelForCausalLM": "modeling_gemma3_int4.Gemma3ForCausalLM",
}


def _named(read):
    """What the stock class read, a configuration or a pair of it and unused arguments, with our name in front."""
    config = read[0] if isinstance(read, tuple) else read
    stock = config.architectures or []
    config.architectures = [f"Int4{name}" for name in stock[:1]] + stock
    return read


class Gemma3Config(StockConfig):
    """Of a model with pictures."""

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As the stock class, the instance too, except for its `architectures`."""
        return _named(StockConfig.from_pretrained(*args, **kwargs))


class Gemma3TextConfig(StockTextConfig):
    """Of a text model."""

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As the stock class, the instance too, except for its `architectures`."""
        return _named(StockTextConfig.from_pretrained(*args, **kwargs))
