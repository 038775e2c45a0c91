"""The profiles: complete sets of settings, as what each changes of the defaults, which are the paper's (`config.Config`)."""

_SHORT = dict(  # what every training far shorter than the paper's needs; both losses and their factors stay the paper's
    channels=1,
    global_skip=True,
    batch_norm=False,
    smooth=True,
    pretrain_loss="psnr",
    pretrain_clip=30.0,  # usual norms are 1 to 10; without it a rate that is too large does not come back
)
PROFILES: dict[str, dict] = {
    "paper": {},
    "kaggle": dict(
        _SHORT,
        max_images=12_000,
        pretrain_steps=300_000,
        gan_steps=60_000,
        max_hours=10.5,
        max_test_images=200,
        sample_images=20,
    ),
    "quick": dict(
        _SHORT,
        data="phantom",
        phantoms=120,  # with 40, validation turned after 2,000 steps
        width=32,
        blocks=16,
        batch=8,
        pretrain_steps=2000,
        pretrain_lr=1e-3,
        pretrain_schedule="one-cycle",
        d_width=32,
        gan_crop=64,
        gan_steps=320,
        gan_lr=3e-4,
        max_test_images=16,
        sampler_crop=72,  # fits every scale
        sampler_steps=180,
        sampler_lr=6e-4,
        sample_images=2,
        classifier_steps=60,
        checkpoint_every=50,
        validate_every=100,
    ),
}
PROFILES["smoke"] = dict(
    PROFILES["quick"],
    phantoms=8,
    phantom_height=160,
    phantom_width=192,
    width=8,
    blocks=1,
    crop=32,
    batch=4,
    pretrain_steps=20,
    content_features="vgg19:relu2_2",
    d_width=4,
    gan_crop=48,
    gan_steps=6,
    sampler_width=4,
    sampler_d_width=4,
    sampler_crop=24,
    sampler_steps=6,
    classifier_steps=5,
    checkpoint_every=5,
    validate_every=5,
)
