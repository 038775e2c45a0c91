"""A generator as an ONNX file, for other programs and languages."""

import copy
import logging
import warnings
from pathlib import Path

import numpy as np
import torch

from ..config import UserError
from ..data.phantom import bscan
from ..degrade import to_tensor
from ..files import write
from ..models.networks import RowConv2d
from ..sampler.network import Sampler, normal_noise
from . import add_weights, choose, given, parser

OPSET = 18
TOLERANCE = 1e-3  # of [0, 1], a quarter of a grey level
CHECKED = (1, 33, 47), (2, 40, 24), (3, 64, 29)  # batch, height, width


def export_onnx(generator: torch.nn.Module, path: str | Path) -> float:
    """Write `generator` (on the CPU, in eval mode) as ONNX: input `lr` (batch, C, height, width) to output `sr`, float32 in [0, 1], any batch and size,
    weights in half precision. A `Sampler` has a second input `noise` (batch, NOISES, scale * height, scale * width), normal; its `sr` is the sample
    before the projection. Returns the largest difference from torch in onnxruntime, on a phantom's squares of the sizes CHECKED. Raises UserError
    where that is above TOLERANCE, or a package is missing."""
    try:
        import onnx
        import onnxruntime
        from onnx_ir.passes.common import ClearMetadataAndDocStringPass  # of onnxscript, which torch's exporter needs
    except ImportError as error:
        raise UserError(f"{path}: ONNX needs the package {error.name}; install it at the version in environment.yml") from None
    names, scale = ["lr", "noise"] if isinstance(generator, Sampler) else ["lr"], generator.settings["scale"]
    network = copy.deepcopy(generator)
    network.kind = ""  # a projection's matrices belong to one size
    for part in network.modules():
        if isinstance(part, RowConv2d):
            part.__class__ = torch.nn.Conv2d  # the same sums; OpenCV 5.0 computes its 1 x k convolutions wrongly
    scan = to_tensor(bscan(0, 160, 192))  # on white noise, which no scan is, the head's values are huge, and so are roundings
    batch, height, width = (torch.export.Dim(name) for name in ("batch", "height", "width"))
    shapes = {0: batch, 2: height, 3: width}, {0: batch, 2: scale * height, 3: scale * width}

    def inputs(batch: int, height: int, width: int) -> tuple[torch.Tensor, ...]:
        squares = [scan[..., 8 * k : 8 * k + height, 8 * k : 8 * k + width] for k in range(batch)]
        lr = torch.cat(squares).expand(-1, generator.settings["channels"], -1, -1).contiguous()
        return (lr, normal_noise(batch, batch, scale * height, scale * width))[: len(names)]

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network, inputs(2, 24, 40), dynamo=True, input_names=names, output_names=["sr"], dynamic_shapes=shapes[: len(names)],
            opset_version=OPSET, verbose=False,
        )  # fmt: skip
    ClearMetadataAndDocStringPass()(program.model)  # they quote paths of the machine
    model, gap = program.model_proto, 0.0
    for attribute in (a for node in model.graph.node for a in node.attribute if a.name == "antialias"):
        attribute.i = 0  # going up it changes nothing, but WebGPU and OpenVINO know no other
    _halve(model.graph, onnx)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for size in CHECKED:
        values = inputs(*size)
        with torch.inference_mode():
            sr = network(*values).numpy()
        (found,) = session.run(None, {name: value.numpy() for name, value in zip(names, values, strict=True)})
        gap = max(gap, float(np.abs(found - sr).max()))
    if not gap <= TOLERANCE:
        raise UserError(f"{path}: onnxruntime differs from torch by {gap:.2g}, more than {TOLERANCE}; nothing was written")
    write(Path(path), model.SerializeToString())
    return gap


def _halve(graph, onnx) -> None:
    """Store the larger weights in half precision, each followed by a cast to float32, which a runtime does once, on loading."""
    for weight in graph.initializer:
        value = onnx.numpy_helper.to_array(weight)
        if value.dtype == np.float32 and value.size >= 64:
            name = weight.name
            weight.CopyFrom(onnx.numpy_helper.from_array(value.astype(np.float16), f"{name}.half"))
            graph.node.insert(0, onnx.helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))


def main(argv: list[str]) -> None:
    words = parser("onnx", "Write a network as an ONNX file, for other programs and languages.")
    words.add_argument("out", type=given, metavar="OUT.onnx")
    add_weights(words)
    args = words.parse_args(argv)
    generator, name, _, _ = choose(args.weights, args.scale, torch.device("cpu"))
    gap = export_onnx(generator, args.out)
    print(f"{args.out}: {name}; onnxruntime and torch differ by at most {gap:.0e} in [0, 1]")
