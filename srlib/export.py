"""A generator as an ONNX file, for other programs and languages."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import torch

from .checkpoint import write
from .config import UserError

TOLERANCE = 1e-3  # of [0, 1], a quarter of a grey level


def export_onnx(generator: torch.nn.Module, path: str | Path) -> float:
    """Write `generator` (on the CPU, in eval mode) as ONNX: input `lr` (batch, C, height, width) to output `sr`, float32 in [0, 1] as in
    torch, any batch and size. Weights are stored in half precision. Returns the largest difference from torch in onnxruntime, on noise at two
    sizes. Raises UserError where that is above TOLERANCE, or a package is missing."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 (torch's exporter needs it)
    except ImportError as error:
        raise UserError(f"{path}: ONNX needs the package {error.name}; install it at the version in environment.yml") from None
    channels = generator.settings["channels"]
    shapes = {k: torch.export.Dim(name) for k, name in ((0, "batch"), (2, "height"), (3, "width"))}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            generator, (torch.rand(2, channels, 24, 40),), dynamo=True, input_names=["lr"], output_names=["sr"], dynamic_shapes=(shapes,),
            verbose=False,
        )  # fmt: skip
    model = program.model_proto
    _halve(model.graph, onnx)
    content, gap = model.SerializeToString(), 0.0
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for seed, shape in enumerate(((1, channels, 33, 47), (3, channels, 64, 29))):
        lr = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
        with torch.inference_mode():
            gap = max(gap, float(np.abs(session.run(None, {"lr": lr.numpy()})[0] - generator(lr).numpy()).max()))
    if not gap <= TOLERANCE:
        raise UserError(f"{path}: onnxruntime differs from torch by {gap:.2g}, more than {TOLERANCE}; nothing was written")
    write(Path(path), content)
    return gap


def _halve(graph, onnx) -> None:
    """Store the larger weights in half precision, each followed by a cast to float32, which a runtime does once, on loading."""
    for weight in graph.initializer:
        value = onnx.numpy_helper.to_array(weight)
        if value.dtype != np.float32 or value.size < 64:
            continue
        name = weight.name
        weight.CopyFrom(onnx.numpy_helper.from_array(value.astype(np.float16), f"{name}.half"))
        graph.node.insert(0, onnx.helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))
