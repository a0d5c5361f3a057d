"""Videos of an evaluation: by the video processor, or their frames as separate images, as the option says."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unime.eval.encoders.loading import load_encoder


FRAMES = [Image.new("RGB", (48, 32), color) for color in ("red", "green", "blue", "white")]
VIDEO, IMAGES = {"video": FRAMES, "text": "a cat"}, {"image": FRAMES, "text": "a cat"}


def test_a_model_with_a_video_processor_reads_videos_unless_the_option_says_frames(
    tiny_model: Callable[[str], Path],
) -> None:
    encoder = load_encoder(str(tiny_model("qwen2-vl")))
    assert encoder.takes_videos
    for word in ("auto", "video"):
        assert encoder.with_videos(word) is encoder
    frames = encoder.with_videos("frames")
    assert not frames.takes_videos
    np.testing.assert_array_equal(frames.encode([VIDEO, "a dog"]), encoder.encode([IMAGES, "a dog"]))
    assert np.abs(frames.encode([VIDEO]) - encoder.encode([VIDEO])).max() > 1e-3
    with pytest.raises(ValueError, match="^unknown videos 'tubes': choose from auto, video, frames$"):
        encoder.with_videos("tubes")


def test_a_model_without_a_video_processor_reads_frames_as_images(tiny_model: Callable[[str], Path]) -> None:
    encoder = load_encoder(str(tiny_model("llava")))
    np.testing.assert_array_equal(encoder.with_videos("auto").encode([VIDEO]), encoder.encode([IMAGES]))
    with pytest.raises(ValueError, match="^videos is 'video', but this model has no video processor, or its chat"):
        encoder.with_videos("video")
