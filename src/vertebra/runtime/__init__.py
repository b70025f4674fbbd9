"""A model made fast: eager, inductor, openvino, onnxruntime, the choice among them, and the proof of its answers."""
