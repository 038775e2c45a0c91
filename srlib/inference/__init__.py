"""Networks at work: images and folders super-resolved, what they were trained for, ONNX."""
