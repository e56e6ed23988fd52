"""Finding, reading and running networks, with stand-ins that say what they were asked for.

Networks of diffusers and transformers: test_real_rung.py, test_stable_diffusion_prior.py,
test_clip_rewards.py, test_image_reward.py."""

import pickle
import socket
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from psd_mini._internal.runs import NonFiniteError
from psd_mini.pretrained import failures, loading, precision, published
from psd_mini.pretrained.failures import (
    first_loaded,
    hub_is_offline,
    memory_error_in_one_line,
    one_line,
)
from psd_mini.pretrained.loading import (
    check_folder,
    load_model,
    load_part,
    load_tiny_autoencoder,
    load_tokenizer,
)
from psd_mini.pretrained.precision import choose_device, freeze, scaled_gradients
from psd_mini.pretrained.published import find_file, read_weights, rename_weights

ASKED = {"output_loading_info": True, "use_safetensors": True}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No test asks the hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def online(monkeypatch):
    for module in (loading, published, failures):
        monkeypatch.setattr(module, "hub_is_offline", lambda: False)


def stand_in(asked, failing=(), missing=(), module="transformers.models"):
    """A class whose from_pretrained notes what it is asked and gives a network, or fails."""

    class Part(nn.Linear):
        @classmethod
        def from_pretrained(cls, source, **settings):
            asked.append((source, settings))
            if (variant := settings.get("variant")) in failing:
                raise OSError(f"no {variant}")
            return cls(2, 2), {"missing_keys": list(missing)}

    Part.__module__ = module
    return Part


# --- one network ---


def test_a_part_is_asked_for_in_safetensors_and_comes_frozen():
    asked = []
    part = load_part(stand_in(asked), "folder")
    assert asked == [("folder", {"variant": None, "local_files_only": False, **ASKED})]
    assert not part.training and not any(p.requires_grad for p in part.parameters())
    load_part(stand_in(asked), "folder", subfolder="unet", offline=True)
    wanted = {"variant": None, "local_files_only": True, "subfolder": "unet", **ASKED}
    assert asked[1] == ("folder", wanted)
    for found in (None, "accelerate"):  # diffusers warns where it is not there
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loading.importlib.util, "find_spec", lambda name, found=found: found)
            load_part(stand_in(asked, module="diffusers.models"), "folder")
        assert asked[-1][1]["low_cpu_mem_usage"] == (found is not None)


@pytest.mark.parametrize(("half", "order"), [(False, [None, "fp16"]), (True, ["fp16", None])])
def test_the_other_file_is_tried_where_one_is_not_there(half, order):
    for failing, tried in [((), order[:1]), (order[:1], order), (order, order)]:
        asked = []
        part = stand_in(asked, failing)
        if len(failing) < 2:
            load_part(part, "folder", half=half)
        else:  # what is said is what is wrong with the full file
            with pytest.raises(OSError, match="no None"):
                load_part(part, "folder", half=half)
        assert [settings["variant"] for _, settings in asked] == tried


def test_missing_weights_are_counted_but_for_constants():
    with pytest.raises(ValueError) as error:
        load_part(stand_in([], missing=["z", "b", "x.position_ids"]), "folder")
    text = "2 weights are missing, the first is b; it was saved by another version"
    assert str(error.value) == text
    assert load_part(stand_in([], missing=["x.position_ids"]), "folder")


@pytest.mark.parametrize(("words", "special"), [(2, 2), (3, 2)])
def test_a_tokenizer_knows_words(words, special):
    class Tokenizer:
        all_special_tokens = ["<s>"] * special
        __len__ = lambda self: words  # noqa: E731
        from_pretrained = classmethod(
            lambda cls, source, **settings: (seen.append(settings), cls())[1]
        )

    seen = []
    if words > special:
        assert len(load_tokenizer(Tokenizer, "here", subfolder="a")) == words
        assert seen == [{"subfolder": "a"}]
    else:
        with pytest.raises(ValueError, match="^there is no vocabulary in here$"):
            load_tokenizer(Tokenizer, "here")


# --- a whole model ---


class Scheduler:
    config = {"beta_start": 0.1, "_class_name": "Euler"}
    asked = []

    @classmethod
    def load_config(cls, source, **settings):
        cls.asked.append((source, settings))
        return cls.config

    @staticmethod
    def from_config(config):
        return config


@pytest.fixture
def libraries(monkeypatch):
    """Stand-ins for diffusers and transformers; gives what each class was asked, by its name."""
    asked = {name: [] for name in ("AutoencoderKL", "UNet2DConditionModel", "AutoencoderTiny")}
    asked["CLIPTextModel"] = []
    parts = {name: stand_in(seen) for name, seen in asked.items()}
    monkeypatch.setattr(Scheduler, "asked", [])
    asked["DDPMScheduler"], parts["DDPMScheduler"] = Scheduler.asked, Scheduler

    class Tokenizer:
        all_special_tokens = ()
        __len__ = lambda self: 1  # noqa: E731

        @classmethod
        def from_pretrained(cls, source, **settings):
            asked.setdefault("CLIPTokenizer", []).append((source, settings))
            return cls()

    parts["CLIPTokenizer"] = Tokenizer
    for library in ("diffusers", "transformers"):
        monkeypatch.setitem(sys.modules, library, SimpleNamespace(**parts))
    return asked


def model_folder(tmp_path, suffix="safetensors"):
    for part in ("unet", "vae", "text_encoder"):
        (tmp_path / part).mkdir()
        (tmp_path / part / f"weights.{suffix}").write_bytes(b"")
    (tmp_path / "model_index.json").write_text('{"_class_name": "Other"}')
    return tmp_path


@pytest.mark.parametrize("where", ["folder", "hub", "hub, offline", "hub, told offline"])
def test_every_part_comes_from_its_own_place(libraries, where, tmp_path, monkeypatch):
    """Folders are never looked for on the network and have no float16 files of their own; the
    hub's are preferred where they are wanted. Words are read when a prompt is."""
    source = model_folder(tmp_path) if where == "folder" else "owner/model-1.5"
    if where != "hub, offline":
        online(monkeypatch)
    local, told = where != "hub", where == "hub, told offline"
    name, (unet, vae, scheduler, load_text) = load_model(source, half=True, offline=told)
    assert name == (source.as_posix() if where == "folder" else source)
    assert isinstance(unet, nn.Module) and isinstance(vae, nn.Module)
    assert scheduler == {"beta_start": 0.1, "_class_name": "DDPMScheduler"}
    assert libraries["DDPMScheduler"] == [
        (name, {"subfolder": "scheduler", "local_files_only": local})
    ]
    assert "CLIPTokenizer" not in libraries and not libraries["CLIPTextModel"]
    tokenizer, encoder = load_text()
    assert len(tokenizer) == 1 and isinstance(encoder, nn.Module)
    assert libraries["CLIPTokenizer"] == [
        (name, {"subfolder": "tokenizer", "local_files_only": local})
    ]
    variant = None if where == "folder" else "fp16"
    classes = ("UNet2DConditionModel", "unet"), ("AutoencoderKL", "vae")
    for cls, part in (*classes, ("CLIPTextModel", "text_encoder")):
        settings = {"variant": variant, "subfolder": part, "local_files_only": local, **ASKED}
        assert libraries[cls] == [(name, settings)]


def test_full_precision_and_the_first_known_model_by_default(libraries, monkeypatch):
    online(monkeypatch)
    assert load_model(None)[0] == loading.MODEL_IDS[0]
    settings = libraries["UNet2DConditionModel"][0][1]
    assert settings["variant"] is None and settings["local_files_only"] is False
    load_model(None, half=True, offline=True)
    settings = libraries["UNet2DConditionModel"][1][1]
    assert settings["variant"] == "fp16" and settings["local_files_only"] is True


def test_a_scheduler_needs_betas(libraries, monkeypatch):
    monkeypatch.setattr(Scheduler, "config", {"trained_betas": [0.1]})
    load_model("a/b")
    monkeypatch.setattr(Scheduler, "config", {"trained_betas": None, "_class_name": "Flow"})
    with pytest.raises(
        ValueError, match="^prior a/b: cannot be loaded .*its scheduler Flow has no"
    ):
        load_model("a/b")


@pytest.mark.parametrize("source", ["name", "a/b/c", "/a/b", "a b/c", "a/", "x://a/b"])
def test_what_is_no_hub_id_is_not_asked_for(libraries, source):
    told = "choose exact, learned, real, .*; a single file or an address is not loaded$"
    with pytest.raises(ValueError, match=f"^prior: '.*' is not known; {told}"):
        load_model(source)
    assert libraries["DDPMScheduler"] == []


@pytest.mark.parametrize("where", ["folder", "hub", "hub, offline"])
def test_the_tiny_autoencoder(libraries, where, tmp_path, monkeypatch):
    if where != "hub, offline":
        online(monkeypatch)
    source = str(tmp_path) if where == "folder" else "owner/tiny"
    assert isinstance(load_tiny_autoencoder(source), nn.Module)
    settings = {"variant": None, "local_files_only": where != "hub", **ASKED}
    assert libraries["AutoencoderTiny"] == [(source, settings)]
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match="^tiny autoencoder .*: cannot be loaded .*pip install"):
        load_tiny_autoencoder(source)


def test_folders_of_other_models_are_named(tmp_path):
    remedy = "the exact world needs none"
    with pytest.raises(
        ValueError, match=f"^prior: .* holds no model in diff.*model_index.*{remedy}"
    ):
        check_folder(tmp_path)
    check_folder(model_folder(tmp_path))
    for other in ("transformer", "text_encoder_2"):
        (tmp_path / other).mkdir()
        what = rf"is a Other \(it has a {other}\); use Stable Diffusion 1.x"
        with pytest.raises(ValueError, match=f"^prior: .*{what}.*{remedy}"):
            check_folder(tmp_path)
        (tmp_path / other).rmdir()
    for part in ("text_encoder", "vae", "unet"):
        weights = tmp_path / part / "weights.safetensors"
        weights.rename(weights.with_suffix(".bin"))
        what = f"{part} has no safetensors, only .bin, a pickle that can run code when opened; down"
        with pytest.raises(ValueError, match=f"^prior: .*{what}.*{remedy}"):
            check_folder(tmp_path)
        weights.with_suffix(".bin").unlink()
        with pytest.raises(ValueError, match=f"^prior: .*{part} has no safetensors; download it"):
            check_folder(tmp_path)


# --- failures in one line ---


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError("gone.\n Sorry."), r"\(OSError: gone. Sorry\); is there a network, and does it"),
        (
            ImportError("no x"),
            r"\(ImportError: no x\); a package is missing: pip install diffusers",
        ),
        (torch.OutOfMemoryError("CUDA"), r"\(OutOfMemoryError: CUDA\); not enough memory: stop"),
        (MemoryError("all"), r"\(MemoryError: all\); not enough memory: stop"),
        *[
            (OSError(f"it {words} b"), r"\(there is no network\); and it was not downloaded befo")
            for words in ("local_files_only", "to have a file named", "cached files")
        ],
    ],
)
def test_whatever_fails_is_one_line(error, text):
    raises = pytest.raises(ValueError, match=rf"^reward x: cannot be loaded {text}.* do this$")
    with raises as told, one_line("reward x", "do this"):
        raise error
    assert told.value.__cause__ is None and "\n" not in str(told.value)


def test_it_blames_the_network_only_where_there_is_none_and_no_folder(tmp_path, monkeypatch):
    """A folder that lacks a file is not a download that is missing."""
    error = OSError("no file: local_files_only")
    raises = pytest.raises(ValueError, match=r"\(OSError: no file.*exact world needs none")
    with raises, one_line(f"prior {tmp_path}"):
        raise error
    online(monkeypatch)
    with pytest.raises(ValueError, match=r"\(OSError: no file"), one_line("prior a/b"):
        raise error


def test_one_warning_of_the_hub_is_kept_back():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with one_line("prior x"):
            warnings.warn("the argument local_dir_use_symlinks is ignored", stacklevel=1)
        with pytest.raises(ValueError, match="UserWarning: other"), one_line("prior x"):
            warnings.warn("other", stacklevel=1)


def test_a_full_gpu_names_the_remedies():
    raises = pytest.raises(ValueError, match="^memory: the GPU has too little; use one camera a st")
    with raises, memory_error_in_one_line():
        raise torch.OutOfMemoryError("CUDA\n out")
    with pytest.raises(RuntimeError, match="other"), memory_error_in_one_line():
        raise RuntimeError("other")


def test_the_first_that_loads():
    asked = []

    def load(name):
        asked.append(name)
        if name in "ab":
            raise ValueError(f"no {name}")
        if name == "d":
            raise KeyError(name)
        return name.upper()

    assert first_loaded("abcd", load) == "C" and asked == ["a", "b", "c"]
    with pytest.raises(ValueError, match="^no a .tried: a, b.$"):
        first_loaded("ab", load)
    with pytest.raises(KeyError):
        first_loaded("dc", load)


def test_whether_there_is_a_network(monkeypatch):
    asked = []

    class Connection:
        def close(self):
            asked.append("closed")

    def connect(address, timeout):
        asked.append((address, timeout))
        return Connection()

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(failures.urllib.request, "getproxies", lambda: {"https": "proxy"})
    for answer in ("1", "true", "yes", "On"):
        monkeypatch.setenv("HF_HUB_OFFLINE", answer)
        assert hub_is_offline() is True
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert hub_is_offline() is False and not asked  # a proxy is trusted
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(failures.urllib.request, "getproxies", dict)
    for address, port in [("https://hub", 443), ("http://hub", 80), ("https://hub:8443/a", 8443)]:
        constants = SimpleNamespace(ENDPOINT=address)
        monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(constants=constants))
        monkeypatch.setitem(sys.modules, "huggingface_hub.constants", constants)
        assert hub_is_offline() is False and asked[-2:] == [(("hub", port), 5), "closed"]

    def refuse(address, timeout):
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", refuse)
    assert hub_is_offline() is True
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", None)
    assert hub_is_offline() is False  # the loader will say what is missing


# --- published weights ---


def test_where_a_weights_file_is(tmp_path, monkeypatch):
    """A path that is there, or that has a suffix, is taken as it is; else it is a hub id."""
    asked = []

    def download(name, file, local_files_only):
        asked.append((name, file, local_files_only))
        if name == "a/first":
            raise OSError("gone")
        return f"/cache/{name}/{file}"

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=download))
    ids = ("a/first", "b/second")
    monkeypatch.setenv("HOME", str(tmp_path))
    for source in (tmp_path, str(tmp_path), tmp_path / "none.pt", "~/none.pt"):
        expected = tmp_path / "none.pt" if str(source).endswith("pt") else tmp_path
        assert find_file(source, ids, "w.pt", "do") == expected
    assert not asked
    assert find_file(None, ids, "w.pt", "do") == Path("/cache/b/second/w.pt")
    assert asked == [("a/first", "w.pt", True), ("b/second", "w.pt", True)]
    online(monkeypatch)
    assert find_file("c/third", ids, "w.pt", "do") == Path("/cache/c/third/w.pt")
    assert asked[2:] == [("c/third", "w.pt", False)]
    with pytest.raises(ValueError, match=r"^reward a/first: cannot be loaded .OSError: gone.*do"):
        find_file("a/first", ids, "w.pt", "do")


def test_weights_are_read_from_both_kinds_of_file(tmp_path):
    state = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pt")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "trained.pt")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("w.safetensors", "w.pt", "trained.pt", "old.pt"):
        read = read_weights(tmp_path / name)
        assert read.keys() == state.keys()
        # exact: a file's own bits
        assert all(torch.equal(read[key], value) for key, value in state.items())
    with pytest.raises(ValueError, match="^reward: there is no file .*none.pt; give the path"):
        read_weights(tmp_path / "none.pt")
    for wrong in ({"a": 1}, {1: torch.ones(1)}, [torch.ones(1)]):
        torch.save(wrong, tmp_path / "wrong.pt")
        with pytest.raises(ValueError, match="^reward: .*wrong.pt is damaged or holds no weights"):
            read_weights(tmp_path / "wrong.pt")
    (tmp_path / "code.pt").write_bytes(pickle.dumps(print, protocol=2))
    with pytest.raises(ValueError, match="more than tensors, could run code; it was not opened"):
        read_weights(tmp_path / "code.pt")


def test_names_are_exchanged_one_after_the_other():
    state, names = (
        {"a.w": torch.ones(2), "b.w": torch.ones(3)},
        {"a.": "b.", "b.": "c.", ".w": ".x"},
    )
    wanted = {"c.x": torch.zeros(2)}
    renamed = rename_weights({"a.w": state["a.w"]}, names, wanted, "Model")
    assert renamed == {"c.x": state["a.w"]}  # a. became b., and that c.
    for wrong, text in [
        ({"z": torch.ones(2)}, "'z' of shape .2,. is not a weight of Model; another file?"),
        ({"b.w": state["b.w"]}, "'b.w' of shape .3,. is not a weight of Model; another file?"),
    ]:
        with pytest.raises(ValueError, match=f"^reward: {text}"):
            rename_weights(wrong, names, wanted, "Model")
    with pytest.raises(
        ValueError, match="^reward: Model's file lacks 2 weights, the first is 'c.a'"
    ):
        rename_weights({}, names, {"d": torch.ones(1), "c.a": torch.ones(1)}, "Model")


# --- where networks run ---


def test_the_device(monkeypatch):
    for there in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert choose_device() == torch.device("cuda" if there else "cpu")
    assert choose_device("cpu") == choose_device(torch.device("cpu")) == torch.device("cpu")
    for wrong in ("meta", "tpu"):
        with pytest.raises(ValueError, match=f"^device: {wrong} cannot be used .*; choose cpu"):
            choose_device(wrong)


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        ("cpu", None, torch.float32),
        ("cpu", "float16", torch.float16),
        ("cuda", None, torch.float16),
        ("cuda", torch.bfloat16, torch.bfloat16),
    ],
)
def test_a_rewards_network_is_frozen_where_it_runs(device, dtype, expected, monkeypatch):
    monkeypatch.setattr(precision, "choose_device", torch.device)  # there need not be a GPU
    network, moved = nn.Sequential(nn.Linear(2, 2), nn.Dropout()), []
    monkeypatch.setattr(network, "to", lambda *where: moved.append(where) or network)
    assert freeze(network, device, dtype) == (torch.device(device), expected)
    assert moved == [(torch.device(device), expected)] and not network.training
    assert not any(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_what_enters_a_float16_network_is_of_one_size(size):
    """y = f(x): dL/dx is J^T dL/dy whatever its size, and what J^T sees is at most `scale`."""
    entered, x = [], torch.tensor([1.0, -2.0], requires_grad=True)

    def network(x):
        y = x.half().float() * torch.tensor([3.0, 0.5])
        y.register_hook(lambda gradient: entered.append(gradient))
        return y + 0

    y = scaled_gradients(network, x, torch.float16, 64.0)
    slope = size * torch.tensor([0.25, -1.0])
    (y * slope).sum().backward()
    torch.testing.assert_close(entered[0], torch.tensor([16.0, -64.0]))
    torch.testing.assert_close(x.grad, slope * torch.tensor([3.0, 0.5]), rtol=1e-6, atol=0)


def test_gradients_of_zero_and_of_nothing():
    x = torch.ones(2, requires_grad=True)
    (0 * scaled_gradients(lambda x: 2 * x, x, torch.float16)).sum().backward()
    # exact: zero
    assert x.grad.tolist() == [0, 0]
    entered = []
    with torch.no_grad():
        assert not scaled_gradients(lambda x: 2 * x, x, torch.float16).requires_grad
    for dtype in (torch.float32, torch.bfloat16):  # their range is wide enough: nothing is scaled

        def network(x):
            y = x.to(torch.float64) * 2
            y.register_hook(lambda gradient: entered.append(gradient))
            return y

        y = scaled_gradients(network, x, dtype, 64.0)
        assert y.dtype == torch.float32
        (y * 1e-3).sum().backward()
        torch.testing.assert_close(entered.pop(), torch.full((2,), 1e-3).double())


def test_an_overflow_is_the_networks_only_where_its_input_was_finite():
    def judge(x):
        return x * 1e4

    x = torch.ones(1).half() * 1e4
    for differentiable in (True, False):
        given = x.clone().requires_grad_(differentiable)
        with pytest.raises(
            NonFiniteError, match="^the judge overflows in float16; use dtype='bflo"
        ):
            scaled_gradients(judge, given, torch.float16)
    with pytest.raises(NonFiniteError, match="^the network overflows in float16"):
        scaled_gradients(Nameless(), x, torch.float16)
    assert scaled_gradients(judge, x * torch.inf, torch.float16).isinf().all()


class Nameless:
    """A function without a name."""

    def __call__(self, x):
        return x * 1e4
