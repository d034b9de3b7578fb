"""Where a graph comes from: a training run, a torch module, or a foreign ONNX file."""
