"""One step of an adversarial training at a time: Ledig's, and the sampler's."""

import copy
import functools
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

from srlib.config import UserError, load_config
from srlib.data.phantom import bscan
from srlib.degrade import downsample, project, to_tensor
from srlib.models import Discriminator
from srlib.models.features import feature_extractor
from srlib.sampler import training as sampler
from srlib.sampler.network import Sampler, SamplerDiscriminator, scan_statistics
from srlib.sampler.training import DRIFT, SHARE, SamplerTraining, gradient_penalty, penalty_at
from srlib.training import parallel
from srlib.training.adversarial import LedigTraining
from srlib.training.losses import LossWeights
from srlib.training.stage import make_generator

TINY = dict(crop=32, gan_crop=32, batch=4, width=8, blocks=1, d_width=4, gan_steps=6, precision="fp32", content_features="vgg19:relu1_2")
SAMPLER = dict(sampler_crop=32, sampler_d_width=4, sampler_steps=6)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def batch():
    """(lr, hr) of four crops of a phantom."""
    image = to_tensor(bscan(3, 96, 128))
    hr = torch.cat([image[..., y : y + 32, x : x + 32] for y, x in ((0, 0), (32, 32), (60, 64), (40, 10))])
    return downsample(hr), hr


def trunk(config):
    """The generator of the settings with random weights, the last ones too, so that it is no bicubic interpolation."""
    torch.manual_seed(0)
    net = make_generator(config)
    nn.init.normal_(net.tail.weight, std=0.01)
    return net


def begin(pair, **settings):
    """The sampler's training before its first step, whose first batches are all `pair`, crops of four scans; a step takes what is usual in them."""
    config, scans = load_config("smoke", **TINY | SAMPLER | settings), scan_statistics(pair[0])
    training = SamplerTraining(config, CPU, trunk(config), lambda: itertools.repeat((*pair, scans)))
    training.step = functools.partial(training.step, scan=scans)
    return training


def ledig(pair, profile="smoke", **settings):
    """The same of Ledig's."""
    config = load_config(profile, **TINY | settings)
    return LedigTraining(config, CPU, trunk(config), feature_extractor(config.content_features), lambda: itertools.repeat(pair))


def named(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def number(tensor):
    return tensor.detach().item()


# --------------------------------------------------------------------------------------------- Ledig's
def test_the_paper_profile_trains_as_ledig(batch, monkeypatch):
    """His two networks; D's loss is -log D(hr) - log(1 - D(sr)) of the logits, G's is features and 1e-3 adversarial, of the D that has just
    learnt; nothing is calibrated, penalised, averaged or frozen."""
    lr, hr = (image.expand(-1, 3, -1, -1) for image in batch)
    training = ledig(batch, "paper")
    assert type(training.discriminator) is Discriminator and not isinstance(training.generator, Sampler)
    monkeypatch.setattr(training, "first_batches", None)  # a calibration would call it
    seen, logits, images = [], [], []
    training.discriminator.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    training.discriminator.register_forward_hook(lambda module, given, out: logits.append(out.detach()))
    training.generator.register_forward_hook(lambda module, given, out: images.append(out.detach()))
    start, d_start = named(training.generator), named(training.discriminator)
    log = training.step(0, lr, hr)
    assert len(images) == 1 and len(logits) == 3
    (sr,) = images
    torch.testing.assert_close(seen[0], 2 * hr - 1)
    torch.testing.assert_close(seen[1], 2 * sr - 1)
    on_hr, on_sr, again = logits
    assert number(log["d_loss"]) == pytest.approx(number(-on_hr.sigmoid().log().mean() - (1 - on_sr.sigmoid()).log().mean()), rel=1e-5)
    assert not torch.equal(again, on_sr)  # D moved before G did
    content = (training.content_loss.extractor(sr) - training.content_loss.extractor(hr)).square().mean()
    adversarial = -again.sigmoid().log().mean()
    assert number(log["content"]) == pytest.approx(number(content) / 12.75**2, rel=1e-4)
    assert number(log["adversarial"]) == pytest.approx(1e-3 * number(adversarial), rel=1e-4)
    assert number(log["loss"]) == pytest.approx(number(log["content"] + log["adversarial"]), rel=1e-5)
    assert set(training.weights) == {"content", "adversarial"}
    for before, model in ((start, training.generator), (d_start, training.discriminator)):
        assert not [name for name, p in model.named_parameters() if torch.equal(p, before[name])]


def test_ledigs_rate_falls_to_a_tenth_at_its_step(batch):
    training = ledig(batch, gan_steps=100, gan_lr=1e-4, gan_lr_drop=0.5)
    for k, rate in ((0, 1e-4), (49, 1e-4), (50, 1e-5), (99, 1e-5), (3, 1e-4)):
        training.step(k, *batch)
        for optimizer in (training.g_optimizer, training.d_optimizer):
            assert optimizer.param_groups[0]["lr"] == pytest.approx(rate) and optimizer.param_groups[0]["betas"] == (0.9, 0.999)


@pytest.mark.parametrize("features", ["vgg19:relu1_2", "none"])
def test_ledigs_content_weight_can_be_calibrated(batch, features):
    """Without a network the content loss is that of pixels."""
    training = ledig(batch, content_weight=0.0, content_features=features, adversarial_share=0.2)
    log = training.step(0, *batch)
    assert number(log["adversarial_share"]) == pytest.approx(0.2, abs=0.05) and training.weights["content"] > 0
    assert number(log["adversarial_share"] + log["content_share"]) == pytest.approx(1)


def test_a_loss_without_size_is_no_measure(batch):
    weights, terms = LossWeights(adversarial=1.0, content=0.0), {"adversarial": torch.tensor(-0.3), "pixel": torch.tensor(1.0)}
    with pytest.raises(UserError, match="no share can be set; set content_weight"):
        weights.calibrate(0.1, [terms | {"content": torch.tensor(1.0)}])
    assert weights.calibrate(0.1, [terms])["pixel"] == 1  # without a content term there is nothing to calibrate by it


# --------------------------------------------------------------------------------------------- the sampler
def test_the_trunk_is_frozen_and_the_head_learns(batch):
    training = begin(batch)
    assert isinstance(training.generator, Sampler) and isinstance(training.discriminator, SamplerDiscriminator)
    before, d_before = named(training.generator), named(training.discriminator)
    for k in range(3):  # the first gradient reaches the head's last layer alone
        training.step(k, *batch)
    for name, value in training.generator.named_parameters():
        moved = (value - before[name]).abs().max()
        assert (moved == 0) if name.startswith("trunk.") else (moved > 1e-6), name
    assert not [name for name, p in training.discriminator.named_parameters() if torch.equal(p, d_before[name])]
    assert {id(p) for group in training.g_optimizer.param_groups for p in group["params"]} == {
        id(p) for p in training.generator.head.parameters()
    }


def test_ds_contrast_makes_what_lr_does_not_say_as_strong_as_an_image(batch):
    """Calibrated: 0.5 over the deviation of HR less the projected trunk; a part of the checkpoint."""
    lr, hr = batch
    training = begin(batch)
    assert training.discriminator.contrast == 10
    training.step(0, lr, hr)
    with torch.no_grad():
        gap = hr - project(training.generator.trunk(lr), lr)
    assert number(training.discriminator.contrast) == pytest.approx(0.5 / number(gap.square().mean().sqrt()), rel=1e-4)
    assert number(training.discriminator.see(hr, hr - gap).std()) == pytest.approx(0.5, rel=0.02)
    contrast = training.discriminator.contrast.clone()
    training.step(1, lr, (hr - 0.1).clamp(0, 1))
    assert torch.equal(training.discriminator.contrast, contrast)  # once
    assert torch.equal(training.parts["discriminator"].state_dict()["contrast"], contrast)


def test_terms_start_at_their_stated_sizes(batch):
    """The pixel term at 1; the content term beside the adversarial one as SHARE says."""
    log = begin(batch).step(0, *batch)
    both = log["adversarial"] + log["content"]
    assert number(log["adversarial"] / both) == pytest.approx(SHARE, abs=0.01)
    assert number(log["pixel"]) == pytest.approx(1, rel=1e-3) and number(log["loss"]) == pytest.approx(number(both) + 1, rel=1e-3)
    assert number(log["adversarial"]) == pytest.approx(math.log(2), rel=0.15)


def test_ds_mean_logit_is_held_at_zero(batch, monkeypatch):
    """Only differences of logits count for the pairing loss: without the drift's term a common constant would stay for ever."""
    ends = {}
    for drift in (0.0, 1.0):
        monkeypatch.setattr(sampler, "DRIFT", drift)
        training = begin(batch, sampler_steps=40, sampler_lr=1e-3)
        for head in training.discriminator.heads:
            head[-1].bias.data.fill_(2.0)
        for k in range(40):
            log = training.step(k, *batch)
        ends[drift] = number(log["d_hr"] + log["d_sr"]) / 2
    assert abs(ends[1.0]) < abs(ends[0.0]) - 0.5 and DRIFT > 0


def test_first_losses_by_hand(batch):
    """D's pairing loss of the logits that it gave, its penalty on what it saw, the pixel term of two samples."""
    training = begin(batch)
    nn.init.normal_(training.generator.head.tail.weight, std=0.05)
    lr, hr = batch
    training.step(0, lr, hr)
    D, given_logits = copy.deepcopy(training.discriminator), []
    D.requires_grad_(True)
    base, sr, other = training._samples(1, lr, scan_statistics(lr))
    torch.testing.assert_close(base, project(training.generator.trunk(lr), lr))
    assert (sr - other).std() > 0.003 and sr.requires_grad and other.requires_grad and not base.requires_grad
    training.discriminator.register_forward_hook(lambda module, given, out: given_logits.append(out.detach()))
    log = training.step(1, lr, hr)
    images = [image.detach().requires_grad_() for image in (hr, sr)]
    logits = [D(D.see(image, base), base) for image in images]
    torch.testing.assert_close(torch.cat(logits), torch.cat(given_logits[:2]))
    assert number(log["d_loss"]) == pytest.approx(number(softplus(logits[1] - logits[0]).mean()), rel=1e-5)
    assert number(log["d_right"]) == pytest.approx(number((logits[0] - logits[1]).sigmoid().mean()), rel=1e-5)
    slopes = sum(gradient_penalty(y, x) for y, x in zip(logits, images, strict=True)) / D.contrast**2  # with respect to what D sees
    assert number(log["penalty"]) == pytest.approx(penalty_at(1, training.config) / 2 * number(slopes), rel=1e-4)
    assert number(log["pixel"]) == pytest.approx(training.weights["pixel"] * number(((sr - hr) * (other - hr)).mean()), rel=1e-4)
    real, fake = given_logits[2:]  # D has moved
    assert number(log["adversarial"]) == pytest.approx(number(softplus(real - fake).mean()), rel=1e-5)


def test_gradients_of_the_head_are_cut(batch, monkeypatch):
    """Those of G to a norm of 5; what is logged is the norm before. D's are left as they are."""
    monkeypatch.setattr(sampler, "PIXEL", 1e4)
    training = begin(batch)
    updates, update = [], sampler.update

    def spy(loss, model, *rest):
        norm = update(loss, model, *rest)
        updates.append((model, norm, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()))
        return norm

    monkeypatch.setattr(sampler, "update", spy)
    log = training.step(0, *batch)
    (_, d_norm, d_cut), (_, g_norm, g_cut) = updates
    assert number(g_cut) == pytest.approx(5, rel=1e-3) and g_norm > 20 and torch.equal(log["g_norm"], g_norm)
    assert number(d_norm) == pytest.approx(number(d_cut), rel=1e-5)


def test_noise_is_a_function_of_seed_step_and_call(batch, monkeypatch):
    shape = torch.Size((4, 1, 32, 32))
    training, again, other = begin(batch), begin(batch), begin(batch, seed=1)
    torch.rand(7)
    assert torch.equal(training._noise(3, 1, shape), again._noise(3, 1, shape))
    noises = [training._noise(k, call, shape) for k in (0, 1, 2) for call in (0, 1)] + [other._noise(0, 0, shape)]
    flat = torch.stack([noise.flatten() for noise in noises])
    assert (torch.corrcoef(flat) - torch.eye(len(flat))).abs().max() < 0.04  # of 16,384 numbers: 5 deviations
    begin(batch, seed=2**40)._noise(10**6, 1, shape)  # no seed is too large
    joint = training._noise(3, 0, shape)
    monkeypatch.setattr(parallel, "size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        assert torch.equal(training._noise(3, 0, torch.Size((2, 1, 32, 32))), joint[2 * rank : 2 * rank + 2])


def test_rates_and_penalty_are_functions_of_the_step(batch):
    """Warmed up over 50 steps, flat, from two thirds on in a straight line to a fiftieth; beta 2 from .9 to .99 at the half; the penalty by
    a cosine to a quarter at 80 %, in proportion to the crop's area (stated for 96). In any order, and for both optimisers."""
    training = begin(batch, sampler_steps=1000, sampler_lr=6e-4, sampler_penalty=72.0)  # of crops of 32: a ninth

    def at(k):
        training._set_rates(k)
        penalty, groups = penalty_at(k, training.config), [o.param_groups[0] for o in (training.g_optimizer, training.d_optimizer)]
        assert groups[0]["lr"] == groups[1]["lr"] and groups[0]["betas"] == groups[1]["betas"]
        return penalty, groups[0]["lr"] / 6e-4, *groups[0]["betas"]

    known = {  # step: penalty, rate, beta 1, beta 2
        1000: (2.0, 0.02, 0.0, 0.99),
        0: (8.0, 0.02, 0.0, 0.9),
        24: (None, 0.5, 0.0, None),
        250: (None, 1.0, 0.0, 0.945),
        400: (5.0, 1.0, 0.0, 0.972),
        835: (2.0, 0.51, 0.0, 0.99),
        500: (None, 1.0, 0.0, 0.99),
    }
    for k, expected in known.items():
        for value, right in zip(at(k), expected, strict=True):
            assert right is None or value == pytest.approx(right, abs=2e-6), k
    short = begin(batch, sampler_steps=1, sampler_crop=96, sampler_penalty=8.0, sampler_lr=6e-4)
    short._set_rates(0)
    assert penalty_at(0, short.config) == 8.0 and short.g_optimizer.param_groups[0]["lr"] == pytest.approx(6e-4)


def test_what_is_released_is_the_average_of_the_steps(batch, monkeypatch):
    """By hand from the weights after each step: decay min(EMA, (k + 1) / (k + 10)), so that the start is soon forgotten."""
    monkeypatch.setattr(sampler, "EMA", 0.3)
    training = begin(batch, sampler_lr=1e-2)
    expected, start = {}, named(training.generator)
    for k in range(6):
        training.step(k, *batch)
        now = named(training.generator)
        decay = min(0.3, (k + 1) / (k + 10)) if k else 0  # (2/11, 3/12, 4/13 and on)
        expected = {name: decay * expected[name] + (1 - decay) * now[name] for name in now} if k else now
    released = named(training.averaged)
    for name, value in expected.items():
        torch.testing.assert_close(released[name], value, atol=1e-6, rtol=1e-5)
        assert not name.startswith("trunk.") or torch.equal(released[name], start[name])
    name = "head.tail.weight"
    assert 0 < (released[name] - now[name]).norm() < (released[name] - start[name]).norm()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision(batch, precision):
    """Finite losses; in fp16 D computes in float32 while it has a penalty, and the trunk in half; without a penalty D too."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    try:
        with torch.autocast("cpu", dtype):
            nn.Conv2d(1, 4, 3)(torch.rand(1, 1, 8, 8)).sum().backward()
    except RuntimeError:
        pytest.skip(f"needs autocast to {precision} on the CPU, which this machine lacks")
    losses = {name: number(begin(batch, precision=name).step(0, *batch)["loss"]) for name in ("fp32", precision)}
    assert losses[precision] == pytest.approx(losses["fp32"], rel=0.02)
    for penalty in (8.0, 0.0):
        training, used = begin(batch, precision=precision, sampler_penalty=penalty), {"trunk": set(), "head": set(), "D": set()}
        for layer, seen in zip(
            (training.generator.trunk.join[0], training.generator.head.body[0], training.discriminator.blocks[1][0]),
            used.values(),
            strict=True,
        ):
            layer.register_forward_hook(lambda module, given, out, seen=seen: seen.add(out.dtype))
        for k in range(2):
            log = training.step(k, *batch)
            assert all(value.isfinite() and value.dtype is torch.float32 for value in log.values())
        assert used["trunk"] == used["head"] == {dtype}
        assert used["D"] == {torch.float32 if penalty and precision == "fp16" else dtype}
        assert training.scaler.is_enabled() == (precision == "fp16") and (log["penalty"] > 0) == bool(penalty)


@pytest.mark.slow
@pytest.mark.parametrize("make", [ledig, begin], ids=["Ledig", "sampler"])
def test_float16_has_the_gradients_of_float32(make):
    """G's and D's in the first step, VGG-19's real layer and the sampler's penalty among what they pass; and 20 steps stay finite."""
    hr, gradients = torch.cat([to_tensor(bscan(k, 160, 160)[40:104, 40:104]) for k in range(4)]), {}
    pair, more = (downsample(hr), hr), {"width": 16, "d_width": 16, "sampler_d_width": 16, "gan_crop": 64, "sampler_crop": 64}
    more |= {"gan_steps": 60, "sampler_steps": 60} | ({"content_features": "vgg19:relu5_4"} if make is ledig else {})
    for precision in ("fp32", "fp16"):
        training = make(pair, precision=precision, **more)
        training.step(0, *pair)
        models = training.generator, training.discriminator
        gradients[precision] = [torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]) for model in models]
    for one, half in zip(*gradients.values(), strict=True):
        assert torch.nn.functional.cosine_similarity(one, half, 0) > 0.99 and one.norm() > 0
    assert all(value.isfinite() for k in range(1, 20) for value in training.step(k, *pair).values())
