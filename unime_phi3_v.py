"""UniME on Phi-3-Vision: what a checkpoint's `auto_map` names instead of the files that every UniME checkpoint has.

transformers copies the files that this one imports, and importing them registers Phi-3-Vision with the Auto classes.
"""

from .configuration_phi3_v import Phi3VConfig
from .configuration_unime import UniMEConfig
from .image_processing_phi3_v import Phi3VImageProcessor
from .modeling_phi3_v import Phi3VForCausalLM, Phi3VModel
from .modeling_unime import UniMEModel
from .processing_phi3_v import Phi3VProcessor


__all__ = [
    "Phi3VConfig",
    "Phi3VForCausalLM",
    "Phi3VImageProcessor",
    "Phi3VModel",
    "Phi3VProcessor",
    "UniMEConfig",
    "UniMEModel",
]
