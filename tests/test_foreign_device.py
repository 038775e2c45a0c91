"""No tensor of the wrong device: trainings, their continuation, upscaling and both evaluations on a GPU that is only pretended.

A pretended tensor says that it is on 'cuda', holds real numbers, and refuses what a real one refuses: to meet a tensor or a generator of the CPU, to
become an array. To autograd it is a meta tensor: one of CUDA would ask for a driver. So results are compared with the CPU's. It cannot show kernels,
autocast, streams, memory, NCCL."""

import contextlib
import types

import numpy as np
import pandas as pd
import pytest
import torch
from running import reduced, save_patients
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from srlib import upscaling
from srlib.config import load_config
from srlib.data.manifest import build_manifest
from srlib.data.phantom import bscan
from srlib.evaluation import run as evaluation
from srlib.sampler import evaluation as sampler_evaluation
from srlib.sampler import training as sampler_training
from srlib.trained import load_generator
from srlib.training import adversarial, checkpoint, pretraining

pytestmark = pytest.mark.filterwarnings("ignore")
GPU, INSIDE = torch.device("cuda"), torch.device("meta")  # what the program sees; what autograd sees
ACROSS = {"copy_", "index", "index_put_", "index_put", "_index_put_impl_"}  # may mix devices
TRAININGS = {"pretrain": pretraining.pretrain_generator, "srgan": adversarial.train_srgan, "sampler": sampler_training.train_sampler}


class Pretended(torch.Tensor):
    """A tensor of the pretended GPU; `kept` is the real one, on the CPU."""

    @staticmethod
    def __new__(cls, values):
        facts = dict(strides=values.stride(), storage_offset=values.storage_offset(), dtype=values.dtype, layout=values.layout)
        return torch.Tensor._make_wrapper_subclass(cls, values.size(), device=INSIDE, **facts)

    def __init__(self, values):
        self.kept = values

    device, is_cuda, is_meta = (property(lambda self, v=v: v) for v in (GPU, True, False))
    __torch_function__ = torch._C._disabled_torch_function_impl

    def __reduce_ex__(self, protocol):
        return self.kept.detach().__reduce_ex__(protocol)  # torch.save, then torch.load(map_location="cpu")

    def __repr__(self):
        return f"Pretended({self.kept})"

    def __deepcopy__(self, memo):
        copied = self.detach().clone()
        return torch.nn.Parameter(copied, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copied

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


def compute(func, args, kwargs):
    """One operation of torch, on the values; an error where a tensor of the CPU (but of a single number) meets a pretended one."""
    tensors = [a for a in tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor)]
    here, asked, across = any(isinstance(a, Pretended) for a in tensors), kwargs.get("device"), func.overloadpacket.__name__ in ACROSS
    if asked is not None and asked.type == INSIDE.type:
        kwargs = kwargs | {"device": torch.device("cpu")}
        if kwargs.get("generator") is not None:
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    elif here and asked is None and not across and any(not isinstance(a, Pretended) and a.dim() for a in tensors):
        raise RuntimeError(f"{func}: Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!")
    given = tree_map(lambda a: a.kept if isinstance(a, Pretended) else a, (args, kwargs))
    out, schema = func(*given[0], **given[1]), func._schema
    if schema.arguments and schema.returns and schema.returns[0].alias_info:
        written = schema.arguments[0].alias_info
        if written and written.is_write and isinstance(args[0], torch.Tensor):
            return args[0]
    there = asked.type == INSIDE.type if asked is not None else here and (not across or isinstance(args[0], Pretended))
    return tree_map(lambda a: Pretended(a) if isinstance(a, torch.Tensor) and not isinstance(a, Pretended) else a, out) if there else out


class Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


class Names(TorchFunctionMode):
    """'cuda' becomes the device of pretended tensors before torch asks for a driver."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}

        def inside(a):
            return INSIDE if str(a) in ("cuda", "cuda:0") and isinstance(a, torch.device | str) else a

        if name == "tolist" and isinstance(args[0], Pretended):  # which a real one may
            return args[0].kept.tolist()
        if name == "new_tensor" and isinstance(args[0], Pretended):
            return Pretended(torch.tensor(*args[1:], **({"dtype": args[0].dtype} | kwargs)))
        if name in ("tensor", "as_tensor") and inside(kwargs.get("device")) is INSIDE:
            return Pretended(func(*args, **(kwargs | {"device": "cpu"})))
        args = tuple(map(inside, args)) if name == "to" else args
        return func(*args, **kwargs | ({"device": inside(kwargs["device"])} if "device" in kwargs else {}))


class Serial(contextlib.nullcontext):
    """In the place of ThreadPoolExecutor: the modes above belong to one thread."""

    map = staticmethod(map)

    def __init__(self, count):
        super().__init__(self)


@pytest.fixture
def gpu(monkeypatch):
    """A context within which `pick_device` gives the pretended GPU. (Inference mode, which subclasses of tensors do not bear, is no_grad there.)"""

    def enter(self):
        self.before = torch.is_grad_enabled()
        torch._C._set_grad_enabled(not self.mode)

    @contextlib.contextmanager
    def context():
        with monkeypatch.context() as patch:
            for module in (pretraining, adversarial, sampler_training, evaluation, sampler_evaluation):
                patch.setattr(module, "pick_device", lambda name="auto": GPU)
            patch.setattr(evaluation, "ThreadPoolExecutor", Serial)
            patch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(total_memory=1 << 20))
            patch.setattr(torch.cuda, "device_count", lambda: 1)
            patch.setattr(torch.Tensor, "pin_memory", lambda self: self)
            fork = torch.random.fork_rng
            patch.setattr(torch.random, "fork_rng", lambda devices: fork([]))
            mode = torch.autograd.grad_mode.inference_mode
            patch.setattr(mode, "__enter__", enter)
            patch.setattr(mode, "__exit__", lambda self, *_: torch._C._set_grad_enabled(self.before))
            with Names(), Operations():
                yield GPU

    return context


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """(folder, manifest, training images, validation images) of six patients."""
    root = save_patients(tmp_path_factory.mktemp("scans"), 112, 128)
    table = build_manifest(root, load_config("smoke", test_share=0.34))
    return root, table, *([root / p for p in table.path[table.split == s]] for s in ("train", "val"))


def settings(**more):
    steps = dict(pretrain_steps=4, gan_steps=4, sampler_steps=4, validate_every=2, checkpoint_every=1, content_features="vgg19:relu1_2")
    return load_config("smoke", precision="fp32", device="cpu", gan_crop=32, **steps | more)


def test_the_pretended_gpu_refuses_what_a_real_one_refuses(gpu):
    with gpu() as device:
        layer, image = torch.nn.Conv2d(1, 2, 3), torch.rand(1, 1, 8, 8)
        moved = layer.to(device)(image.to(device))
        assert moved.device == device and np.allclose(moved.detach().cpu().numpy(), moved.kept.detach())
        for wrong in (
            lambda: layer(image),
            lambda: moved + moved.cpu(),
            lambda: torch.cat([moved, moved.cpu()]),
            lambda: moved.detach().numpy(),
            lambda: torch.rand(2, device=device, generator=torch.Generator()),
        ):
            with pytest.raises((RuntimeError, TypeError)):
                wrong()
        moved.square().mean().backward()
        assert layer.weight.grad.device == device and layer.weight.grad.abs().sum().item() > 0


@pytest.mark.parametrize("more", [{}, {"content_weight": 0.0, "batch_norm": True}], ids=["smoke", "calibrated, BN"])
def test_trainings_and_their_continuation(scans, tmp_path, gpu, more):
    """The same histories as on the CPU, from crops cut on the device; continued from step 3, too."""
    config, images = settings(**more), scans[2:]
    wanted = [train(config, *images, tmp_path / "cpu") for train in TRAININGS.values()]
    with gpu():
        found = [train(config, *images, tmp_path / "gpu") for train in TRAININGS.values()]
        for name in TRAININGS:
            file = tmp_path / "gpu" / name / "checkpoint.pt"
            assert all(not isinstance(v, Pretended) for v in tree_leaves(checkpoint.load(file)))
            file.with_suffix(".prev.pt").replace(file)
        again = [train(config, *images, tmp_path / "gpu") for train in TRAININGS.values()]
    for a, b, c in zip(wanted, found, again, strict=True):
        columns = [name for name in a if name not in ("seconds", "session")]
        pd.testing.assert_frame_equal(a[columns], b[columns], rtol=1e-3, atol=1e-4)
        pd.testing.assert_frame_equal(b[columns], c[columns], rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def trained(scans, tmp_path_factory):
    folder, (root, _, *images) = tmp_path_factory.mktemp("run"), scans
    config = settings(data=str(root), max_test_images=2, classifier_steps=2, sample_images=1)
    for train in TRAININGS.values():
        train(config, *images, folder)
    return config, folder


@pytest.mark.parametrize("tile", [320, 20])
def test_upscaling(trained, gpu, monkeypatch, tile):
    """Whole and in tiles, grey, colour and 16 bit, samples: the CPU's images."""
    monkeypatch.setattr(upscaling, "OVERLAP", 8)
    monkeypatch.setattr(upscaling, "TILE", tile)
    lr = reduced(bscan(3, 96, 160))
    for image in (lr, np.stack(3 * [lr], 2), lr.astype(np.uint16) * 257):
        for name in ("srgan", "sampler"):

            def made(device, image=image, name=name):
                return upscaling.samples(image, load_generator(trained[1] / f"{name}.pt", device), range(2), consistent="bicubic")

            wanted = made("cpu")
            with gpu() as device:
                found = made(device)
            most = 257 if image.dtype == np.uint16 else 1
            assert all(np.abs(a.astype(float) - b).max() <= most for a, b in zip(wanted, found, strict=True))


def test_evaluations(scans, trained, gpu, monkeypatch):
    """Notebook 05's and 07's: metrics.csv is the CPU's, every other table is there, and has its rows."""
    monkeypatch.setattr(sampler_evaluation, "FEATURES", "vgg19:relu1_1")  # a network that has weights
    (root, manifest, *_), (config, folder) = scans, trained
    for evaluate, place in ((evaluation.evaluate_run, "evaluation"), (sampler_evaluation.evaluate_sampler, "sampler")):
        wanted, files = evaluate(config, root, manifest, folder), {*(folder / place).glob("*.csv")} - {folder / place / "history.csv"}
        rows = {file: len(pd.read_csv(file)) for file in files}
        for file in files if place == "sampler" else ():
            file.unlink()
        with gpu():
            found = evaluate(config, root, manifest, folder)
        assert rows == {file: len(pd.read_csv(file)) for file in files} and min(rows.values()) > 0
        pd.testing.assert_frame_equal(wanted, found, rtol=1e-3, atol=1e-2)
