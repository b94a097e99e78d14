"""transformers' own `add_adapter` and what goes with it, where the PEFT that is installed is new enough for them.

transformers 5.24 asks for PEFT 0.22, which was not published when 5.24 was: until then only PEFT's own ways work.
"""

import peft
import pytest
from packaging.version import Version
from transformers.integrations.peft import MIN_PEFT_VERSION

adapter_methods = pytest.mark.skipif(
    Version(peft.__version__) < Version(MIN_PEFT_VERSION),
    reason=f"this transformers' add_adapter wants PEFT {MIN_PEFT_VERSION} or later",
)
