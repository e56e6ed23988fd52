"""A learned prior from the command line to the object, and every way in which loading one fails:
one line each."""

import json
import shutil
import sys
from pathlib import PureWindowsPath

import pytest
import torch
from tiny_pipeline import tiny_pipeline

from psd_mini import distill, generate, make_field
from psd_mini.methods import make_method
from psd_mini.pipelines import cli
from psd_mini.pretrained import failures, loading, make_prior
from psd_mini.pretrained.stable_diffusion import StableDiffusionPrior
from psd_mini.rewards import make_reward

SMALL = {"method": "sds", "steps": 3, "resolution": 8, "progress": False, "device": "cpu"}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """No test asks the hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_pipeline(folder)
    return folder


@pytest.fixture
def copy(folder, tmp_path):
    """A copy of the model to break."""
    return shutil.copytree(folder, tmp_path / "model")


def refused(source, match, **settings):
    """Loading (or embedding) raises a ValueError that says so in one line."""
    with pytest.raises(ValueError, match=match) as refusal:
        StableDiffusionPrior.from_pretrained(source, device="cpu", **settings).embed(["a"])
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.mark.slow
def test_from_the_command_line(folder, tmp_path, capsys):
    """--prior FOLDER: everything is written, nothing is judged, the guidance scale is 7.5, the
    summary is one line."""
    out = tmp_path / "out"
    arguments = [
        "generate",
        "a corgi in a hat",
        "--prior",
        str(folder),
        "--method",
        "sds",
        "--steps",
        "3",
        "--resolution",
        "16",
    ]
    cli.main(
        [
            *arguments,
            "--device",
            "cpu",
            "--dtype",
            "float32",
            "--negative-prompt",
            "blurry",
            "--out",
            str(out),
        ]
    )
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("a corgi in a hat: 3 steps against") and len(printed) == 2
    record = json.loads((out / "run.json").read_text())
    assert record["metrics"] == {} and record["config"]["guidance_scale"] == 7.5  # exact: a setting
    assert record["config"]["model"] == str(folder) and record["cost"]["prior_evaluations"] == 24
    assert (out / "turntable.gif").exists() and (out / "mesh.glb").exists()


def test_same_seed_same_object_and_resume(folder, tmp_path, monkeypatch):
    """On one machine with one thread count: twice the same bits; a finished run resumes to the
    same bits."""
    monkeypatch.setattr("psd_mini.pipelines.generate.save", lambda *_: None)
    options = {**SMALL, "prior": str(folder), "out": tmp_path}
    fields = [
        generate("a corgi", **options).field,
        generate("a corgi", **options, resume=True).field,
    ]
    fields.append(generate("a corgi", **{**options, "out": None}).field)
    for other in fields[1:]:
        # exact: one machine, one thread count
        assert all(
            torch.equal(x, y)
            for x, y in zip(fields[0].parameters(), other.parameters(), strict=True)
        )


def test_another_precision_is_another_run(folder, tmp_path, monkeypatch):
    """Half precision rounds otherwise, so the checkpoint of a run in float32 is not continued in
    it."""
    monkeypatch.setattr("psd_mini.pipelines.generate.save", lambda *_: None)
    generate("a corgi", prior=str(folder), out=tmp_path, dtype="float32", **SMALL)
    with pytest.raises(ValueError, match="dtype = 'torch.float32', this run has 'torch.bfloat16'"):
        generate("a corgi", prior=str(folder), out=tmp_path, dtype="bfloat16", resume=True, **SMALL)


def test_psd_with_negative_embedding(folder):
    """PSD, a reward and a learnt negative embedding against a learned prior: the embedding moves
    within its trust region."""
    result = generate("a corgi", prior=str(folder), negative=True, **{**SMALL, "method": "psd"})
    assert all(record["negative_norm"] > 1e-4 for record in result.history)
    assert "negative_words" not in result.metrics


def test_dps_passes_through_no_unet(folder):
    """Methods that differentiate the denoiser say in one line that this prior keeps no graph."""
    with pytest.raises(
        ValueError, match="no gradient passes through this prior's denoiser"
    ) as refusal:
        generate("a corgi", prior=str(folder), **{**SMALL, "method": "dps"})
    assert "\n" not in str(refusal.value)


def test_views_reach_the_prompt_but_not_the_negative(folder):
    """The loop words the prompt for each view and leaves the negative prompt alone; conditioning
    "none" words nothing."""
    seen = []
    for conditioning, rows in (("words", 6), ("none", 1)):
        prior = make_prior(str(folder), conditioning=conditioning, device="cpu")
        callback = lambda step: seen.append(step["context"].embeddings)  # noqa: E731
        distill(
            make_field("voxel"),
            prior,
            make_method("sds"),
            "a dog",
            steps=1,
            resolution=8,
            callback=callback,
            progress=False,
        )
        assert seen[-1].shape == (2, rows, 16, 32)
    prompt, negative = seen[0]
    assert (
        len({tuple(row.flatten().tolist()) for row in prompt}) == 5
    )  # right and left share "side view"
    assert len({tuple(row.flatten().tolist()) for row in negative}) == 1


def test_unusable_folders(copy, tmp_path):
    """No model there, a part without weights, weights as pickle only, and damaged ones."""
    (tmp_path / "empty").mkdir()
    assert "prior='exact'" in refused(
        tmp_path / "empty", "holds no model in diffusers' format .no model_index.json"
    )
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    refused(copy, "prior .*model: cannot be loaded")
    weights.unlink()
    refused(copy, "unet has no safetensors; download it again")
    torch.save({}, copy / "unet" / "diffusion_pytorch_model.bin")
    refused(copy, "unet has no safetensors, only .bin, a pickle that can run code when opened")


def test_a_pickle_is_never_opened(copy, tmp_path):
    """A .bin that would create a file, and a .safetensors that is one in disguise: refused,
    nothing is created."""
    victim = tmp_path / "victim"

    class Malice:
        def __reduce__(self):
            return (open, (str(victim), "w"))

    for name in ("model.bin", "pytorch_model.bin", "model.safetensors"):
        (copy / "text_encoder" / "model.safetensors").unlink(missing_ok=True)
        torch.save(Malice(), copy / "text_encoder" / name)
        refused(
            copy,
            (
                "text_encoder has no safetensors, only .bin"
                if name.endswith("bin")
                else "cannot be loaded"
            ),
        )
    assert not victim.exists()


def test_weights_under_other_names_are_refused(copy):
    """Files whose names another version would fill with random numbers: said, not used."""
    from safetensors.torch import load_file, save_file

    path = copy / "text_encoder" / "model.safetensors"
    state = load_file(path)
    save_file({f"other.{name}": value for name, value in state.items()}, path, {"format": "pt"})
    refused(copy, "weights are missing, the first is .*; it was saved by another version")


def test_a_folder_without_vocabulary(copy):
    """transformers from 5 on makes an empty tokenizer there: all words would be the same."""
    for file in (copy / "tokenizer").iterdir():
        file.unlink()
    refused(copy, "prior .*: cannot be loaded")


def test_text_model_under_both_layouts(folder, copy):
    """Keys that begin with text_model., as every version wrote them before transformers 5.2,
    give the same embedding."""
    from safetensors.torch import load_file, save_file

    path = copy / "text_encoder" / "model.safetensors"
    state = {name.removeprefix("text_model."): value for name, value in load_file(path).items()}
    save_file(
        {f"text_model.{name}": value for name, value in state.items()}, path, {"format": "pt"}
    )
    expected = StableDiffusionPrior.from_pretrained(folder, device="cpu").embed(["a dog"])
    # exact: the same weights, so the same code on the same numbers
    assert torch.equal(
        StableDiffusionPrior.from_pretrained(copy, device="cpu").embed(["a dog"]), expected
    )


def test_autoencoder_with_its_old_names(folder, copy):
    """Stable Diffusion 1.x publishes its attention as query, key, value, proj_attn: loaded, not
    refused."""
    from safetensors.torch import load_file, save_file

    path = copy / "vae" / "diffusion_pytorch_model.safetensors"
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def old(name):
        for new, before in names.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        return name

    state = load_file(path)
    assert any(old(name) != name for name in state)
    save_file({old(name): value for name, value in state.items()}, path, {"format": "pt"})
    image = torch.rand(1, 3, 16, 16)
    priors = [StableDiffusionPrior.from_pretrained(place, device="cpu") for place in (folder, copy)]
    assert torch.equal(
        priors[0].encode(image), priors[1].encode(image)
    )  # exact: the same weights and code


def test_only_half_precision_files(folder, copy):
    """A folder with *.fp16.safetensors alone loads as well, rounded to 11 bits."""
    for part, name in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        from safetensors.torch import load_file, save_file

        path = copy / part / f"{name}.safetensors"
        half = {
            key: value.half() if value.is_floating_point() else value
            for key, value in load_file(path).items()
        }
        save_file(half, copy / part / f"{name}.fp16.safetensors", {"format": "pt"})
        path.unlink()
    full, half = (
        StableDiffusionPrior.from_pretrained(place, device="cpu") for place in (folder, copy)
    )
    assert half.unet.dtype == half.vae.dtype == half.embed(["a"]).dtype == torch.float32
    torch.testing.assert_close(half.embed(["a"]), full.embed(["a"]), rtol=1e-2, atol=1e-2)


def test_schedulers_of_another_kind(copy):
    """A flow-matching scheduler has no betas: said in one line. Zero terminal SNR is as in
    diffusers."""
    path = copy / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}))
    refused(copy, "its scheduler FlowMatchEulerDiscreteScheduler has no betas")
    path.write_text(
        json.dumps({**config, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"})
    )
    prior = StableDiffusionPrior.from_pretrained(copy, device="cpu")
    # exact: the number that diffusers' Euler schedulers put there
    assert prior.schedule.alphas_cumprod[-1] == 2.0**-24


@pytest.mark.parametrize(
    "source",
    ["imagen", "./nowhere", "/nowhere/at/all", "a/b/c", "https://huggingface.co/a/b", __file__],
)
def test_neither_folder_nor_id(source):
    refused(source, "is not known; choose exact, learned, real, a hub id")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ConnectionError("Name or service not known\nand so on"),
            "ConnectionError: Name or service not known.*is there a network",
        ),
        (OSError("404: repository not found"), "404: repository not found.*does it still exist"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "not enough memory"),
    ],
)
def test_hub_failures(error, message, monkeypatch):
    """Offline, removed, out of memory: one line that says what to do; all ids are tried for
    "real", in order."""
    from diffusers import DDPMScheduler

    asked = []

    def fail(source, **_):
        asked.append(source)
        raise error

    monkeypatch.setattr(DDPMScheduler, "load_config", fail)
    refused("somebody/something", message)
    text = refused(None, message)
    assert asked == ["somebody/something", *loading.MODEL_IDS] and "prior='exact'" in text


def test_offline_is_noticed_at_once(monkeypatch):
    """No name service, or nobody listening: offline, so that only downloaded files are looked
    for; a proxy is trusted."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(failures.urllib.request, "getproxies", dict)
    for error in (OSError("Name or service not known"), ConnectionRefusedError(), TimeoutError()):

        def fail(address, timeout, error=error):
            raise error

        monkeypatch.setattr(failures.socket, "create_connection", fail)
        assert failures.hub_is_offline()
    monkeypatch.setattr(failures.urllib.request, "getproxies", lambda: {"https": "proxy"})
    assert not failures.hub_is_offline()


def edited(copy, part, **changes):
    """The folder with other entries in one part's configuration."""
    path = copy / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return copy


def test_folders_of_other_models(copy):
    """SDXL and its refiner, a transformer, a shift of the latents: what it is, and what to use."""
    for part in ("transformer", "text_encoder_2"):
        (copy / part).mkdir()
        refused(copy, rf"is a StableDiffusionPipeline \(it has a {part}\); use Stable Diffusion 1")
        (copy / part).rmdir()
    refused(edited(copy, "vae", shift_factor=0.1), "another kind of model: shift_factor 0.1; use S")


@pytest.mark.parametrize(("size", "resolution"), [([8, 8], 16), (None, 128), (4, 8)])
def test_sample_size_as_diffusers_reads_it(copy, size, resolution):
    """A number, a pair, or nothing, which is 64."""
    prior = StableDiffusionPrior.from_pretrained(edited(copy, "unet", sample_size=size))
    # exact: counts of pixels
    assert prior.resolution == resolution


def test_a_hub_id_keeps_its_slash(monkeypatch):
    """Also where a path is written with backslashes."""
    monkeypatch.setattr(loading, "Path", PureWindowsPath)
    monkeypatch.setattr(PureWindowsPath, "expanduser", lambda path: path, raising=False)
    monkeypatch.setattr(PureWindowsPath, "is_dir", lambda path: False, raising=False)
    refused(PureWindowsPath("some\\thing"), "prior some/thing: cannot be loaded")


def test_missing_package(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    refused(folder, "diffusers.*a package is missing: pip install diffusers transformers")


def test_without_network(tmp_path, monkeypatch):
    """Nothing was downloaded: the cache is empty and the network is not asked."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    message = "cannot be loaded .there is no network.; and it was not downloaded before"
    refused("somebody/something", message)
    for name in ("image-reward", "hpsv2", "pickscore"):
        with pytest.raises(ValueError, match=message):
            make_reward(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prior", "imagen"], "prior: 'imagen' is not known"),
        (["--prior", "FOLDER", "--device", "tpu"], "device: tpu cannot be used"),
        (["--prior", "FOLDER", "--device", "meta"], "device: meta cannot be used"),
        (["--prior", "FOLDER", "--dtype", "int8"], "dtype: 'int8' is not known"),
        (
            ["--device", "cuda"],
            "device, dtype: the exact world runs on the cpu in float32, not cuda",
        ),
        (
            ["--prior", "FOLDER", "--method", "psd", "--reward", "image-reward:/nowhere.pt"],
            "there is no file /nowhere.pt",
        ),
        (["--prior", "FOLDER", "--method", "exact"], "method: exact needs a prior with `tilted`"),
    ],
)
def test_mistakes_end_in_one_line(options, message, folder, tmp_path, capsys):
    """Exit status 2 and one line on stderr."""
    options = [str(folder) if option == "FOLDER" else option for option in options]
    with pytest.raises(SystemExit) as stop:
        cli.main(
            [
                "generate",
                "a cube",
                "--steps",
                "2",
                "--resolution",
                "8",
                *options,
                "--out",
                str(tmp_path / "out"),
            ]
        )
    error = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and error.startswith("psd-mini: ") and message in error


def test_out_of_memory_in_the_loop(folder, monkeypatch):
    """The GPU is full in the middle of a run: one line with the remedy."""

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(StableDiffusionPrior, "predict_noise", full)
    with pytest.raises(
        ValueError, match="memory: the GPU has too little; use one camera a step"
    ) as refusal:
        generate("a corgi", prior=str(folder), **SMALL)
    assert "\n" not in str(refusal.value)
