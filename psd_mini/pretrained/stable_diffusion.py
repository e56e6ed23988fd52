"""A latent diffusion model in diffusers' format as a prior: Stable Diffusion, or any of its shape.

    x = s E(2 image - 1)                  E: the autoencoder's encoder (mean of its posterior)
    image = (D(x / s) + 1) / 2            D: its decoder, s: its scaling factor
    eps_hat = U(x_t, t, e)                U: the UNet
    eps_hat = sigma_t x_t + alpha_t v     for models that predict v = alpha_t eps - sigma_t x

e is the text encoder's last hidden state, L tokens of D numbers (77 of 768 in Stable Diffusion 1).

The networks are frozen. A gradient passes through E to the image. The UNet is asked without keeping
its graph, unless the embedding itself is being optimised (a negative embedding): then the gradient
goes to the embedding and to nothing else.

A picture taken from behind should not be asked to look like the prompt's favourite side. So the
prompt has variants, one per view word, and each camera picks its own (DreamFusion, section 3.2):
embeddings are (K, V, L, D) with

    v = 0 the prompt as it stands,    v = 1.. one variant for each entry of `view_words`

Reference: Rombach et al. 2022 (arXiv 2112.10752); Poole et al. 2022 (DreamFusion, arXiv 2209.14988)
for view-dependent prompts.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from psd_mini.cameras import Cameras
from psd_mini.pretrained.failures import memory_error_in_one_line
from psd_mini.pretrained.loading import TINY_ID, LoadText, load_model, load_tiny_autoencoder
from psd_mini.pretrained.precision import choose_device, choose_dtype, scaled_gradients
from psd_mini.schedule import NoiseSchedule
from psd_mini.sds import Prior
from psd_mini.world.text import DIRECTIONS

Images = Float[Tensor, "b 3 h w"]
Latents = Float[Tensor, "b c h w"]
Embeddings = Float[Tensor, "k v l d"]

# where the camera is (one of `DIRECTIONS`, or "overhead") -> what becomes of the prompt there
VIEW_WORDS = {
    "front": "{}, front view",
    "right": "{}, side view",
    "back": "{}, back view",
    "left": "{}, side view",
    "overhead": "{}, overhead view",
}
OVERHEAD = math.radians(60)  # elevation from which a camera looks from above (DreamFusion)
ELEVATIONS = (-10.0, 75.0)  # degrees
# what Stable Diffusion does not have: SDXL's conditions, LCM's guidance, a shift of the latents
OTHERS = ("addition_embed_type", "time_cond_proj_dim", "shift_factor")


class StableDiffusionPrior(Prior):
    """A latent diffusion model (equations: the module's docstring), usually by `from_pretrained`.

    Args:
        unet, vae: networks of diffusers, UNet2DConditionModel and AutoencoderKL.
        scheduler: one of diffusers' with `alphas_cumprod`; its prediction_type is "epsilon" or
            "v_prediction".
        load_text: gives (tokenizer, text encoder) of transformers. It is called when a new prompt
            is embedded; the encoder leaves memory at the next noise prediction.
        tiny: gives an AutoencoderTiny of the same latents, when first needed; or None.
        tiny_encode: encode with it too, instead of only decoding: ten times cheaper, but the
            gradient is another network's.
        view_words: view -> prompt with {} for the prompt, or None: every camera gets the prompt as
            it stands. With words for "front right" and the like there are eight sides, else four.
        elevations: between which `draw_cameras` stands, degrees.
        device, dtype: where the networks live and in which precision. x, embeddings and gradients
            are always float32.

    Raises:
        ValueError: a model of another kind, with what it is.
    """

    keeps_graph = False  # of the UNet: methods that would differentiate through it can tell

    def __init__(
        self,
        unet: Any,
        vae: Any,
        scheduler: Any,
        load_text: LoadText,
        *,
        tiny: Callable[[], nn.Module] | None = None,
        tiny_encode: bool = False,
        view_words: Mapping[str, str] | None = VIEW_WORDS,
        elevations: tuple[float, float] = ELEVATIONS,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ):
        predicts = scheduler.config.get("prediction_type", "epsilon")
        if predicts not in ("epsilon", "v_prediction"):
            raise ValueError(f"prior: it predicts {predicts!r}, not epsilon or v_prediction")
        wanted, given = unet.config.in_channels, vae.config.latent_channels
        both = dict(unet.config) | dict(vae.config)
        found = [f"{name} {both[name]}" for name in OTHERS if both.get(name)]
        if wanted != given or found:
            what = f"the UNet wants {wanted} channels, the autoencoder gives {given}"
            extra = f"settings of another kind of model: {', '.join(found) or 'none'}"
            raise ValueError(f"prior: {what}, {extra}; use Stable Diffusion 1.x or 2.x")
        self.name, self.prediction_type = type(unet).__name__, predicts
        self.device = choose_device(device)
        self.dtype = choose_dtype(self.device, dtype)
        self.schedule = NoiseSchedule.from_diffusers(scheduler)
        self.unet, self.vae = self._place(unet), self._place(vae)
        size = unet.config.sample_size or 64  # as diffusers' pipelines read it
        size = size if isinstance(size, int) else size[0]
        self.resolution = size * 2 ** (len(vae.config.block_out_channels) - 1)
        self.view_words, self.elevations = dict(view_words or {}), elevations
        self.tiny_encode, self._load_tiny, self._load_text = tiny_encode, tiny, load_text
        self._tiny: Any = None
        self._text: tuple[Any, nn.Module] | None = None
        self._embedded: dict[str, Tensor] = {}

    @classmethod
    def from_pretrained(
        cls, source: str | Path | None = None, *, tiny: str | Path | None = None, **settings: Any
    ) -> StableDiffusionPrior:
        """Load a model.

        Args:
            source: folder in diffusers' format or hub id; None tries `loading.MODEL_IDS` one after
                the other.
            tiny: folder or hub id of an AutoencoderTiny; by default `loading.TINY_ID` when source
                is None, else none.
            settings: as in the class's docstring.

        Raises:
            ValueError: in one line, what is missing and what to do.
        """
        tiny = TINY_ID if tiny is None and source is None else tiny
        dtype = choose_dtype(choose_device(settings.get("device")), settings.get("dtype"))
        name, parts = load_model(source, half=dtype != torch.float32)
        load_tiny = None if tiny is None else partial(load_tiny_autoencoder, tiny)
        with memory_error_in_one_line():
            prior = cls(*parts, tiny=load_tiny, **settings)
        prior.name = name
        return prior

    def _place(self, network: nn.Module, dtype: torch.dtype | None = None) -> Any:
        """The network, frozen, on the prior's device and in its precision."""
        # nn.Module's own `to`, because the one of diffusers warns
        return nn.Module.to(network, self.device, dtype or self.dtype).requires_grad_(False).eval()

    @torch.no_grad()
    def _hidden_state(self, prompt: str, view: str = "{}") -> Float[Tensor, "l d"]:
        """Last hidden state of the text encoder in float32, remembered for each prompt and view.

        Of a prompt that is too long for the encoder the end is left out, never the view's words.
        """
        wanted = view.format(prompt)
        if wanted not in self._embedded:
            if self._text is None:
                tokenizer, encoder = self._load_text()
                self._text = tokenizer, self._place(encoder, torch.float32)
            tokenizer, encoder = self._text
            text, kept, most = wanted, prompt, tokenizer.model_max_length
            while kept and len(tokenizer(text, verbose=False).input_ids) > most:
                kept = kept.rpartition(" ")[0] or kept[:-1]
                text = view.format(kept)
            if kept != prompt:
                lost = f"too long for the text encoder, {prompt[len(kept) :]!r} is left out"
                warnings.warn(f"prompt: {lost}", stacklevel=4)
            tokens = tokenizer([text], padding="max_length", truncation=True, return_tensors="pt")
            self._embedded[wanted] = encoder(tokens.input_ids.to(self.device))[0][0]
        return self._embedded[wanted]

    def embed(self, prompts: list[str]) -> Embeddings:
        """Embeddings of K prompts, the same for every view; "" is the null prompt.

        These are for negative prompts: guidance subtracts their prediction, and with the view's
        word in the prompt it would subtract the view.
        """
        rows = torch.stack([self._hidden_state(prompt) for prompt in prompts])
        return rows[:, None].repeat(1, 1 + len(self.view_words), 1, 1)

    def embed_views(self, prompts: list[str]) -> Embeddings:
        """Embeddings of K prompts, with a variant for each view word."""
        rows = []
        for prompt in prompts:
            views = ["{}", *self.view_words.values()]
            rows.append(torch.stack([self._hidden_state(prompt, view) for view in views]))
        return torch.stack(rows)

    def negative_settings(self, start: Tensor, prompt: Tensor) -> dict[str, Any]:
        """How a `NegativeEmbedding` should move, in a text encoder's units: as far as from the null
        prompt to the prompt, ||e_prompt - e_null||.

        Guesses, never tuned at full size. ReNeg (arXiv 2412.19637) moves 5e-3 a step; at high noise
        d x0_hat / dn grows like sigma_t / alpha_t.
        """
        radius = (prompt - start).norm().item()
        return {"lr": 1e-3, "radius": radius, "t_range": (0.02, 0.5)}

    def view_index(self, cameras: Cameras) -> Int[Tensor, " b"]:
        """Which variant each camera picks: "overhead" above 60 degrees, else its side.

        It is 0, the prompt as it stands, where there is no word for the view.
        """
        names = [0, *self.view_words]
        has_corners = self.view_words.keys() & set(DIRECTIONS[1::2])
        directions = DIRECTIONS if has_corners else DIRECTIONS[::2]
        place = [names.index(view) if view in names else 0 for view in directions]
        index = torch.tensor(place, device=cameras.azimuth.device)[cameras.side(len(directions))]
        if "overhead" in names:
            index[cameras.elevation > OVERHEAD] = names.index("overhead")
        return index

    def draw_cameras(self, n: int, generator: torch.Generator) -> Cameras:
        """n cameras all around, between `elevations` above the horizon, uniform in both angles."""
        u = torch.rand(2, n, generator=generator, device=generator.device)
        low, high = (math.radians(bound) for bound in self.elevations)
        angles = 2 * math.pi * u[0], low + (high - low) * u[1], torch.full((n,), 3.0)
        azimuth, elevation, distance = (values.to(self.device) for values in angles)
        return Cameras(azimuth, elevation, distance, math.radians(40))

    def _autoencoder(self, tiny: bool) -> Any:
        """The tiny autoencoder if it is wanted and there is one, else the model's own."""
        if not tiny or self._load_tiny is None:
            return self.vae
        if self._tiny is None:
            self._tiny = self._place(self._load_tiny())
        return self._tiny

    def encode(self, images: Images) -> Latents:
        """x = s E(2 image - 1) of the images at the model's own resolution; differentiable."""
        images, network = images.to(self.device), self._autoencoder(self.tiny_encode)
        shape = self.resolution, self.resolution
        if images.shape[-2:] != shape:
            images = F.interpolate(images, shape, mode="bilinear", antialias=True)

        def autoencoder(images: Tensor) -> Tensor:
            encoded = network.encode((2 * images - 1).to(self.dtype))
            return encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()

        return network.config.scaling_factor * scaled_gradients(autoencoder, images, self.dtype)

    def decode(self, x: Latents) -> Images:
        """image = (D(x / s) + 1) / 2, clamped to [0, 1]; differentiable.

        D is the tiny autoencoder's decoder if there is one.
        """
        network = self._autoencoder(tiny=True)

        def autoencoder(x: Tensor) -> Tensor:
            return network.decode((x / network.config.scaling_factor).to(self.dtype)).sample

        return ((scaled_gradients(autoencoder, x.to(self.device), self.dtype) + 1) / 2).clamp(0, 1)

    def predict_noise(
        self, x_t: Latents, t: Tensor, embeddings: Embeddings, cameras: Cameras | None = None
    ) -> Float[Tensor, "k b c h w"]:
        """eps_hat for all K embeddings in one call of the UNet, in float32; its graph is not kept.

        With gradients switched on and embeddings that require them, eps_hat is differentiable in
        the embeddings. The UNet then runs again in the backward pass, picture by picture, so that
        the graph of no more than one picture is ever held.

        Args:
            x_t: (B, C, h, w) noised latents; used as they are, no gradient goes to them.
            t: (B,) timesteps.
            embeddings: (K, V, L, D), see `embed_views`.
            cameras: B cameras, each of which picks its variant; None is the prompt as it stands.
        """
        self._text = None  # all prompts are embedded: make room
        view = torch.zeros(len(x_t)).long() if cameras is None else self.view_index(cameras)
        text = embeddings.to(self.device)[:, view.to(self.device)].flatten(0, 1)  # (K B, L, D)
        copies = len(embeddings)
        latents = x_t.detach().to(self.device, self.dtype).repeat(copies, 1, 1, 1)
        times = t.to(self.device).expand(len(x_t)).repeat(copies)

        def ask(latents: Tensor, times: Tensor, text: Tensor) -> Tensor:
            return self.unet(latents, times, text.to(self.dtype)).sample

        def ask_one_by_one(text: Tensor) -> Tensor:
            rows = zip(latents.split(1), times.split(1), text.split(1), strict=True)
            return torch.cat([checkpoint(ask, *row, use_reentrant=False) for row in rows])

        if torch.is_grad_enabled() and embeddings.requires_grad:
            output = scaled_gradients(ask_one_by_one, text, self.dtype)
        else:
            with torch.no_grad():
                output = ask(latents, times, text)
        output = output.float().view(copies, *x_t.shape)
        if self.prediction_type == "epsilon":
            return output
        return self.schedule.eps_from_v(x_t.detach().to(output), output, t)
