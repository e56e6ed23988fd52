"""Diffusion priors. A prior is anything with these attributes; the exact ones have more.

schedule                                                         a NoiseSchedule
embed(prompts) -> embeddings (K, ...)                            "" is the null prompt
encode(images (B, 3, H, W) in [0, 1]) -> x (B, C, h, w)          differentiable
decode(x) -> images in [0, 1]
predict_noise(x_t, t, embeddings, cameras) -> eps_hat (K, B, C, h, w)   all K embeddings in one call
draw_cameras(n, generator) -> Cameras                            where the loop may look from
"""
