"""Forms of a checkpoint that other programs read: plain for serving engines, ONNX for its text path."""
