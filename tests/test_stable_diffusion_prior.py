"""The latent diffusion prior does what diffusers' own pipeline and schedulers do; random
weights, Stable Diffusion's shape."""

import math
import warnings
import weakref

import pytest
import torch
from tiny_pipeline import tiny_autoencoder, tiny_pipeline

from psd_mini import cfg, orbit
from psd_mini._internal.runs import NonFiniteError
from psd_mini.negative import NegativeEmbedding
from psd_mini.pretrained import precision
from psd_mini.pretrained.stable_diffusion import StableDiffusionPrior
from psd_mini.sds import Context

PROMPT, NEGATIVE = "a red ball", "a blurry pic"
FOUR = orbit([0.0, 90.0, 180.0, 0.0], [10.0, 10.0, 10.0, 70.0])  # front, right, back, overhead


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def model(request, tmp_path_factory):
    """(diffusers' pipeline, our prior) of one folder."""
    folder = tmp_path_factory.mktemp(request.param)
    return tiny_pipeline(folder, request.param), StableDiffusionPrior.from_pretrained(
        folder, device="cpu"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_pipeline(folder)
    tiny_autoencoder(folder / "taesd")
    return folder


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def both(prior):
    return torch.cat((prior.embed_views([PROMPT]), prior.embed([NEGATIVE])))


def test_sampling_like_diffusers(model):
    """Five DDIM steps with our embeddings, predictions, CFG, conversions and decoder end in the
    pipeline's own picture.

    x0_hat = (x_t - sigma_t eps) / alpha_t,   x_s = alpha_s x0_hat + sigma_s eps
    """
    pipe, prior = model
    x_t = draw(2, 4, 8, 8)
    asked = {"num_inference_steps": 5, "guidance_scale": 7.5, "num_images_per_prompt": 2}
    latents = pipe(
        PROMPT, negative_prompt=NEGATIVE, latents=x_t, output_type="latent", **asked
    ).images
    picture = pipe(PROMPT, negative_prompt=NEGATIVE, latents=x_t, output_type="pt", **asked).images
    times = pipe.scheduler.timesteps.tolist()
    for step, before in zip(times, [*times[1:], 0], strict=True):
        t = torch.full((2,), step)
        eps = cfg(*prior.predict_noise(x_t, t, both(prior)), 7.5)
        x0_hat = prior.schedule.x0_from_eps(x_t, eps, t)
        x_t = prior.schedule.add_noise(x0_hat, eps, torch.full((2,), before))
    torch.testing.assert_close(x_t, latents, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(prior.decode(x_t), picture, rtol=1e-5, atol=1e-5)


def test_conversions_like_diffusers(model):
    """add_noise, velocity and the predicted noise are the scheduler's; the UNet is asked exactly
    once for K embeddings."""
    pipe, prior = model
    x, eps, t = draw(3, 4, 8, 8), draw(3, 4, 8, 8, seed=1), torch.tensor([0, 400, 999])
    x_t = prior.schedule.add_noise(x, eps, t)
    torch.testing.assert_close(x_t, pipe.scheduler.add_noise(x, eps, t), rtol=1e-5, atol=1e-5)
    velocity = pipe.scheduler.get_velocity(x, eps, t)
    torch.testing.assert_close(
        prior.schedule.eps_from_v(x_t, velocity, t), eps, rtol=1e-5, atol=1e-5
    )
    calls = []
    handle = prior.unet.register_forward_hook(lambda *_: calls.append(1))
    eps_hat = prior.predict_noise(x_t, t, both(prior))
    handle.remove()
    assert calls == [1] and eps_hat.shape == (2, 3, 4, 8, 8)
    for k, prompt in enumerate((PROMPT, NEGATIVE)):
        text = pipe.encode_prompt(prompt, "cpu", 1, False)[0].expand(3, -1, -1)
        with torch.no_grad():
            output = pipe.unet(x_t, t, text).sample
        expected = (
            output
            if prior.prediction_type == "epsilon"
            else prior.schedule.eps_from_v(x_t, output, t)
        )
        torch.testing.assert_close(eps_hat[k], expected, rtol=1e-5, atol=1e-5)


def test_embeddings_and_view_words(model):
    """Row 0 is the pipeline's embedding of the prompt, the others of the prompt with a view
    word; negatives have none."""
    pipe, prior = model
    prior._embedded.clear()  # other tests have asked, and what is remembered does not warn again
    with pytest.warns(UserWarning, match="too long for the text encoder, ' red ball' is left out"):
        prompt, negative = both(prior)  # the tiny encoder reads 16 tokens; "overhead" has 8
    words = ["", ", front view", ", side view", ", back view", ", side view", ", overhead view"]
    for row, word in zip(prompt, words, strict=True):
        torch.testing.assert_close(
            row,
            pipe.encode_prompt(("a" if "over" in word else PROMPT) + word, "cpu", 1, False)[0][0],
            rtol=1e-5,
            atol=1e-5,
        )
    for row in negative:
        torch.testing.assert_close(
            row, pipe.encode_prompt(NEGATIVE, "cpu", 1, False)[0][0], rtol=1e-5, atol=1e-5
        )
    assert prior.view_index(FOUR).tolist() == [1, 2, 3, 5]
    assert prior.view_index(orbit([270.0, 44.0, 46.0], 59.0)).tolist() == [4, 1, 2]


def test_each_camera_picks_its_words(model):
    """A batch of four cameras is four predictions, each with the embedding of its own view;
    without cameras, of row 0."""
    _, prior = model
    x_t, t = draw(4, 4, 8, 8), torch.tensor([5, 300, 600, 900])
    embeddings = both(prior)
    together = prior.predict_noise(x_t, t, embeddings, FOUR)
    for b, view in enumerate((1, 2, 3, 5)):
        alone = prior.predict_noise(x_t[b : b + 1], t[b : b + 1], embeddings[:, [view]])
        torch.testing.assert_close(together[:, b : b + 1], alone, rtol=1e-5, atol=1e-5)
        k_alone = prior.predict_noise(x_t[b : b + 1], t[b : b + 1], embeddings[1:], FOUR[b : b + 1])
        torch.testing.assert_close(together[1:, b : b + 1], k_alone, rtol=1e-5, atol=1e-5)
    assert (together[0] - prior.predict_noise(x_t, t, embeddings)[0]).abs().max() > 1e-4


def test_without_view_words(folder):
    """view_words=None: one row, and cameras change nothing (the switch that shows the Janus
    problem)."""
    prior = StableDiffusionPrior.from_pretrained(folder, view_words=None, device="cpu")
    x_t, t = draw(4, 4, 8, 8), torch.tensor([5, 300, 600, 900])
    embeddings = prior.embed_views([PROMPT])
    assert embeddings.shape == (1, 1, 16, 32)
    # exact: the same code on the same numbers
    assert torch.equal(
        prior.predict_noise(x_t, t, embeddings, FOUR), prior.predict_noise(x_t, t, embeddings)
    )


def test_encode_is_diffusers_mean(model):
    """x = scaling factor times the posterior's mean; images of another resolution are
    resized first."""
    pipe, prior = model
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = 0.3 * pipe.vae.encode(2 * images - 1).latent_dist.mean
    torch.testing.assert_close(prior.encode(images), expected, rtol=1e-5, atol=1e-5)
    grey = torch.full((1, 3, 40, 40), 0.25)
    torch.testing.assert_close(
        prior.encode(grey), prior.encode(grey[..., :16, :16]), rtol=1e-5, atol=1e-5
    )


def test_gradient_reaches_the_image_through_the_encoder(model):
    """d <u, encode(image)> along a direction = (f(+h) - f(-h)) / 2h; no parameter of any network
    receives a gradient."""
    _, prior = model
    image = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    u, direction = draw(1, 4, 8, 8), draw(1, 3, 24, 24, seed=2)
    leaf = image.clone().requires_grad_()
    (prior.encode(leaf) * u).sum().backward()
    with torch.no_grad():
        ahead, behind = ((prior.encode(image + h * direction) * u).sum() for h in (1e-3, -1e-3))
    torch.testing.assert_close(
        (leaf.grad * direction).sum(), (ahead - behind) / 2e-3, rtol=5e-3, atol=1e-3
    )
    assert all(
        p.grad is None and not p.requires_grad
        for n in (prior.unet, prior.vae)
        for p in n.parameters()
    )


def test_unet_keeps_no_graph(model):
    """With gradients on and x_t that requires them: the prediction has no graph, and nothing was
    saved for a backward pass."""
    _, prior = model
    saved = []
    x_t = draw(2, 4, 8, 8).requires_grad_()
    embeddings = both(prior)

    def keep(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        eps_hat = prior.predict_noise(x_t, torch.tensor([10, 800]), embeddings)
    assert not eps_hat.requires_grad and saved == []


def test_gradient_to_the_embedding_and_nothing_else(model):
    """Differentiable where the embedding requires it: finite differences, each camera's row
    only, no gradient to x_t."""
    _, prior = model
    x_t, t, u = (
        draw(2, 4, 8, 8).requires_grad_(),
        torch.tensor([300, 800]),
        draw(1, 2, 4, 8, 8, seed=3),
    )
    cameras = FOUR[:2]
    leaf = prior.embed([NEGATIVE]).requires_grad_()
    value = (prior.predict_noise(x_t, t, leaf, cameras) * u).sum()
    torch.testing.assert_close(
        value.detach(), (prior.predict_noise(x_t, t, leaf.detach(), cameras) * u).sum()
    )
    value.backward()
    assert x_t.grad is None and all(p.grad is None for p in prior.unet.parameters())
    assert (leaf.grad.abs().amax((0, 2, 3)) > 0).tolist() == [
        False,
        True,
        True,
        False,
        False,
        False,
    ]
    direction = draw(*leaf.shape, seed=4)
    with torch.no_grad():
        ahead, behind = (
            (prior.predict_noise(x_t, t, leaf + h * direction, cameras) * u).sum().double()
            for h in (1e-2, -1e-2)
        )
    torch.testing.assert_close(
        (leaf.grad * direction).sum().double(), (ahead - behind) / 2e-2, rtol=2e-2, atol=1e-3
    )


def test_two_embeddings_with_gradients_keep_their_order(model):
    """Each prompt gets its own prediction, and each prediction's gradient goes to its own prompt.
    Wrong: to ask picture by picture in another order than the answers are sorted in."""
    _, prior = model
    x_t, t, leaf = draw(3, 4, 8, 8), torch.tensor([100, 500, 900]), both(prior).requires_grad_()
    eps_hat = prior.predict_noise(x_t, t, leaf, FOUR[:3])
    alone = [prior.predict_noise(x_t, t, one[None], FOUR[:3])[0] for one in leaf.detach()]
    torch.testing.assert_close(eps_hat.detach(), torch.stack(alone), rtol=1e-4, atol=1e-5)
    assert (alone[0] - alone[1]).abs().max() > 1e-3
    eps_hat[1].sum().backward()
    assert leaf.grad[0].abs().max() == 0 and leaf.grad[1].abs().max() > 0  # exact: no path


def test_negative_embedding_moves(model):
    """A NegativeEmbedding started at embed([negative])[0] fits between the loop's embeddings and
    receives a gradient."""
    _, prior = model
    negative = NegativeEmbedding(prior.embed([NEGATIVE])[0], 7.5, lr=1e-2, radius=1.0)

    class Redness:
        differentiable = True

        def __call__(self, images, prompts):
            return images[:, 0].mean((1, 2))

    context = Context(prior, both(prior), FOUR[:2], [PROMPT] * 2, Redness())
    seen = negative.step(0.0, draw(2, 4, 8, 8), context, torch.Generator().manual_seed(0))
    assert seen["negative_norm"] > 1e-4
    assert torch.stack((context.embeddings[0], negative.embedding.detach())).shape == (2, 6, 16, 32)


def test_text_encoder_is_let_go_and_comes_back(folder):
    """Prompts are embedded once; the encoder leaves memory at the next prediction and is loaded
    again for a new prompt."""
    prior = StableDiffusionPrior.from_pretrained(folder, device="cpu")
    loads, load = [], prior._load_text

    def counted():
        loads.append(1)
        return load()

    prior._load_text = counted
    first = both(prior)
    encoder = weakref.ref(prior._text[1])
    assert len(loads) == 1
    prior.predict_noise(draw(1, 4, 8, 8), torch.tensor([5]), first)
    assert encoder() is None
    assert torch.equal(both(prior), first) and len(loads) == 1  # exact: kept, not computed again
    prior.embed(["a ball"])
    assert len(loads) == 2


def test_tiny_autoencoder(folder):
    """Decodes where it is given; encodes only if that is asked for too."""
    from diffusers import AutoencoderTiny

    reference = AutoencoderTiny.from_pretrained(folder / "taesd").eval()
    images, x = torch.rand(2, 3, 16, 16), draw(2, 4, 8, 8)
    for tiny_encode in (False, True):
        prior = StableDiffusionPrior.from_pretrained(
            folder, tiny=folder / "taesd", tiny_encode=tiny_encode, device="cpu"
        )
        with torch.no_grad():
            expected = (reference.decode(x).sample / 2 + 0.5).clamp(0, 1)
            latents = reference.encode(2 * images - 1).latents
        torch.testing.assert_close(prior.decode(x), expected, rtol=1e-5, atol=1e-5)
        assert torch.allclose(prior.encode(images), latents, atol=1e-5) == tiny_encode


@pytest.mark.parametrize("what", ["encode", "decode", "predict_noise"])
def test_small_and_large_gradients_survive_half_precision(folder, what):
    """Gradients of 1e-9, which float16 cannot hold, and of 1e6 arrive as multiples of one
    another, near the float32 one."""

    def gradient(prior, size):
        leaf = {
            "encode": torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)),
            "decode": draw(1, 4, 8, 8),
        }
        leaf = (leaf[what] if what in leaf else prior.embed([NEGATIVE])).clone().requires_grad_()
        if what == "predict_noise":
            y = prior.predict_noise(draw(1, 4, 8, 8), torch.tensor([500]), leaf)
        else:
            y = getattr(prior, what)(leaf)
        assert y.dtype == torch.float32
        (y * size * draw(*y.shape, seed=1)).sum().backward()
        return leaf.grad.flatten() / size

    half, full = (
        StableDiffusionPrior.from_pretrained(folder, device="cpu", dtype=d)
        for d in ("float16", "float32")
    )
    expected = gradient(full, 1.0)
    assert expected.abs().max() > 1e-4
    for size in (1e-9, 1.0, 1e6):
        arrived = gradient(half, size)
        assert torch.nn.functional.cosine_similarity(arrived, expected, dim=0) > 0.99
        torch.testing.assert_close(arrived.norm(), expected.norm(), rtol=0.02, atol=0)


def test_half_precision_stays_outside(folder):
    """Whatever the networks compute in, predictions, embeddings and pictures are float32, and
    near the float32 ones."""
    full = StableDiffusionPrior.from_pretrained(folder, device="cpu")
    x_t, t = draw(2, 4, 8, 8), torch.tensor([10, 900])
    for dtype in ("bfloat16", "float16"):
        prior = StableDiffusionPrior.from_pretrained(folder, device="cpu", dtype=dtype)
        embeddings = both(prior)
        eps_hat = prior.predict_noise(x_t, t, embeddings)
        assert prior.unet.dtype == prior.vae.dtype == getattr(torch, dtype)
        assert embeddings.dtype == eps_hat.dtype == prior.decode(x_t).dtype == torch.float32
        assert (eps_hat - full.predict_noise(x_t, t, embeddings)).abs().max() < 0.05


def test_an_overflow_of_half_precision_names_the_network_and_the_remedy(folder):
    """The picture is finite and the autoencoder's output is not: not "the render is not finite"."""
    prior = StableDiffusionPrior.from_pretrained(folder, device="cpu", dtype="float16")
    picture, x = draw(1, 3, 16, 16).sigmoid(), draw(1, 4, 8, 8)
    with torch.no_grad():
        for network in (prior.vae.encoder.conv_in, prior.vae.decoder.conv_in):
            network.weight.fill_(6e4)
    message = r"^the autoencoder overflows in float16; use dtype='bfloat16' \(--dtype\), or 'fl"
    for ask, given in ((prior.encode, picture), (prior.decode, x)):
        for differentiable in (False, True):
            with pytest.raises(NonFiniteError, match=message):
                ask(given.clone().requires_grad_(differentiable))
    # what comes in is not finite: not the network's fault
    assert not prior.encode(picture * torch.inf).isfinite().all()


def test_a_long_prompt_keeps_the_words_of_the_view(model):
    """The text encoder reads 16 tokens; the end of the prompt is left out, with a warning, and the
    views still differ. Wrong: to cut the text, as tokenizers do."""
    pipe, prior = model
    with pytest.warns(UserWarning, match="^prompt: too long for the text encoder, ' red red"):
        long = prior.embed_views([" ".join(["red"] * 30)])[0]
    assert len({tuple(row.flatten().tolist()) for row in long}) == 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kept in range(13):
            prompt = " ".join(["red"] * kept)
            short = pipe.encode_prompt(f"{prompt}, overhead view", "cpu", 1, False)[0][0]
            if torch.allclose(short, long[5], rtol=1e-5, atol=1e-5):
                break
        else:
            raise AssertionError("the view's words are not whole")


def test_precision_follows_the_gpu(monkeypatch):
    """bfloat16 from compute capability 8.0 on, float16 below (a T4 is 7.5), float32 without a
    GPU."""
    for capability, expected in (
        ((7, 5), torch.float16),
        ((8, 0), torch.bfloat16),
        ((9, 0), torch.bfloat16),
    ):
        monkeypatch.setattr(
            torch.cuda, "get_device_capability", lambda device, answer=capability: answer
        )
        assert precision.choose_dtype(torch.device("cuda")) == expected
    assert precision.choose_dtype(torch.device("cpu")) == torch.float32
    assert precision.choose_dtype(torch.device("cuda"), "float32") == torch.float32
    with pytest.raises(
        ValueError, match="dtype: 'int8' is not known; choose from float32, float16, bfloat16"
    ):
        precision.choose_dtype(torch.device("cpu"), "int8")


def test_cameras_all_around(folder):
    """Azimuth and elevation uniform, by the generator; the field fits into every picture."""
    prior = StableDiffusionPrior.from_pretrained(folder, device="cpu")
    cameras = prior.draw_cameras(4000, torch.Generator().manual_seed(0))
    assert torch.histc(cameras.azimuth, 4, 0, 2 * math.pi).min() > 900
    assert abs(cameras.elevation.mean().item() - math.radians(32.5)) < 0.02
    # exact: one seed, one machine
    assert torch.equal(
        cameras.azimuth, prior.draw_cameras(4000, torch.Generator().manual_seed(0)).azimuth
    )
    assert cameras.distance.min() * math.sin(cameras.fov / 2) > 1.02


def test_models_of_another_kind_are_refused(folder):
    """Flow prediction, inpainting and SDXL-type UNets: one line that says what the model is."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    vae, unet = (
        AutoencoderKL.from_pretrained(folder / "vae"),
        UNet2DConditionModel.from_pretrained(folder / "unet"),
    )

    def make(unet=unet, **settings):
        return StableDiffusionPrior(
            unet, vae, DDIMScheduler(**settings), lambda: (None, None), device="cpu"
        )

    with pytest.raises(ValueError, match="it predicts 'sample', not epsilon or v_prediction"):
        make(prediction_type="sample")
    unet.register_to_config(in_channels=9)
    with pytest.raises(
        ValueError,
        match="the UNet wants 9 channels, the autoencoder gives 4, settings of another kind of mo",
    ):
        make()
