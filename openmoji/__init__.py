"""The OpenMoji data and benchmark: named drawings and scenes composed of them, for offline training and evaluation."""
