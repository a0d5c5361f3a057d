"""The checks that transformers runs on each of its models, run on UniME's: see `test_transformers_checks.py`."""

import sys
import tempfile
import unittest
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image
from tiny_models import LAYER_SIZES, TINY_MODELS
from torch import Tensor
from transformers import LlavaProcessor, ProcessorMixin, Qwen2VLProcessor

from unime import UniMEConfig, UniMEModel, UniMEOutput, micro_batches
from unime.modeling_unime import ATTENTION_SUPPORT
from unime.processing_unime import chat_template


def stand_in(name: str, **contents: Any) -> None:
    """Make a module for what the checks import from files that the source distribution does not have."""
    sys.modules[name] = ModuleType(name)
    vars(sys.modules[name]).update(contents)


IMAGE = Path(tempfile.gettempdir()) / "unime_transformers_checks.png"
Image.new("RGB", (48, 32), "red").save(IMAGE)
stand_in("fetch_hub_objects_for_ci", url_to_local_path=lambda url: str(IMAGE))
for package in ("exporters", "generation", "utils"):
    stand_in(f"transformers_tests.{package}")
stand_in("transformers_tests.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
stand_in("transformers_tests.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
stand_in("transformers_tests.utils.test_configuration_utils", config_common_kwargs={})

from transformers_tests.test_configuration_common import ConfigTester  # noqa: E402
from transformers_tests.test_modeling_common import ModelTesterMixin  # noqa: E402
from transformers_tests.test_processing_common import ProcessorTesterMixin  # noqa: E402


for name in ATTENTION_SUPPORT:  # the checks ask the class; each model takes these from its backbone
    setattr(UniMEModel, name, True)
# The checks of training need a loss, which UniME's trainers compute outside of the model.
UniMEOutput.loss = property(lambda output: output.embeddings.sum())  # type: ignore[attr-defined]


def tiny_processor(processor: ProcessorMixin) -> ProcessorMixin:
    """Give a native processor UniME's chat template."""
    processor.chat_template = chat_template(processor)
    return processor


class Tester:
    """Configuration and inputs of a tiny model, as the checks expect them."""

    is_training = True
    batch_size = 2
    num_hidden_layers = LAYER_SIZES["num_hidden_layers"]
    num_attention_heads = LAYER_SIZES["num_attention_heads"]
    hidden_size = LAYER_SIZES["hidden_size"]

    def __init__(self, family: str, **overrides: Any):
        backbone, processor = TINY_MODELS[family]()
        self.backbone_config = backbone.config.to_dict() | overrides
        items = [{"text": "a cat", "image": Image.new("RGB", (48, 32), color)} for color in ("red", "blue")]
        ((_, tensors),) = micro_batches(tiny_processor(processor), items, micro_batch_tokens=10**6)
        self.inputs = dict(tensors)
        self.seq_length = self.inputs["input_ids"].shape[1]

    def get_config(self) -> UniMEConfig:
        return UniMEConfig(backbone_config=dict(self.backbone_config))

    def prepare_config_and_inputs_for_common(self) -> tuple[UniMEConfig, dict[str, Tensor]]:
        return self.get_config(), {name: tensor.clone() for name, tensor in self.inputs.items()}


class ModelChecks(ModelTesterMixin):
    all_model_classes = (UniMEModel,)
    test_can_init_all_missing_weights_before_2023 = True  # asks for the check; CLIP is older
    _is_composite = True

    def test_config(self) -> None:
        settings = {
            "pooling": "mean",
            "positions": "sequential",
            "prompts": {"image": ""},
            "matryoshka_dimensions": [16, 32],
        }
        ConfigTester(self, UniMEConfig, has_text_modality=False, **settings).run_common_tests()


class LlavaModelTest(ModelChecks, unittest.TestCase):
    test_all_params_have_gradient = False  # CLIP's last layer norm is not used

    def setUp(self) -> None:
        self.model_tester = Tester("llava", vision_feature_layer=-1)


class Qwen2VLModelTest(ModelChecks, unittest.TestCase):
    def setUp(self) -> None:
        self.model_tester = Tester("qwen2-vl")


class Phi3VModelTest(ModelChecks, unittest.TestCase):
    test_all_params_have_gradient = False  # as with LLaVA
    test_resize_tokens_embeddings = None  # removes the image token, which is the last of the vocabulary

    def setUp(self) -> None:
        self.model_tester = Tester("phi3-v", vision_feature_layer=-1)


class LlavaProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = LlavaProcessor

    @staticmethod
    def prepare_processor_dict() -> dict[str, Any]:
        names = ("patch_size", "num_additional_image_tokens", "vision_feature_select_strategy")
        return {name: getattr(TINY_MODELS["llava"]()[1], name) for name in names}

    @classmethod
    def _setup_from_components(cls) -> ProcessorMixin:
        return tiny_processor(TINY_MODELS["llava"]()[1])


class Qwen2VLProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = Qwen2VLProcessor

    @classmethod
    def _setup_from_components(cls) -> ProcessorMixin:
        return tiny_processor(TINY_MODELS["qwen2-vl"]()[1])


for name in dir(Qwen2VLProcessorTest):
    if name.startswith("test_") and "video" in name:
        setattr(Qwen2VLProcessorTest, name, None)  # UniME embeds texts and images
