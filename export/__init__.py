"""Export of a checkpoint to formats that other programs read: plain for serving engines, ONNX for its text path."""
