import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one core a test, and so for what it starts: several tests run at once

import pytest
import torch
import torchvision
from running import save_patients

from srlib.data.manifest import build_manifest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def real_scans():
    root = SHARED / "oct" / "OCT2017"
    if not root.is_dir():
        pytest.skip("needs real scans in ../shared/oct/OCT2017, which this checkout lacks")
    return root


@pytest.fixture(scope="session")
def vgg_file(tmp_path_factory):
    """The released VGG-19 as a file of one's own."""
    from srlib.models.features import convolutions

    path = tmp_path_factory.mktemp("vgg") / "vgg19_convolutions.pth"
    torch.save(convolutions("vgg19"), path)
    return path


@pytest.fixture(scope="module")
def no_vgg():
    """The KID of patches in features of no network: VGG-19's take most of the time of a small evaluation. (Theirs: test_unpaired.py.)"""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("srlib.sampler.evaluation.FEATURES", "none")
        yield


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory):
    """Network to a file with a random state dict of it, of three networks."""
    folder, rng = tmp_path_factory.mktemp("weights"), torch.Generator().manual_seed(0)
    for name in ("vgg19", "vgg16", "resnet50"):
        with torch.device("meta"):
            network = getattr(torchvision.models, name)(weights=None)
        shapes = getattr(network, "features", network).state_dict().items()
        state = {k: torch.rand(v.shape, generator=rng) - (0.5 if v.ndim == 4 else 0) for k, v in shapes}  # variances are above 0
        state = {k: v if v.ndim < 4 else v / v[0].numel() ** 0.5 for k, v in state.items()}
        torch.save(state, folder / f"{name}.pth")
    return {name: folder / f"{name}.pth" for name in ("vgg19", "vgg16", "resnet50")}


@pytest.fixture
def scan_folder(tmp_path):
    """Twelve small phantoms of six patients, in Kermany's layout."""
    return save_patients(tmp_path / "scans", 112, 128)


@pytest.fixture
def images(scan_folder):
    """Its image files, of training and validation patients."""
    table = build_manifest(scan_folder)
    return [[str(scan_folder / p) for p in table.path[table.split == s]] for s in ("train", "val")]
