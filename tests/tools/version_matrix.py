"""The tests of learned priors and of learned rewards with several versions of their libraries.

    python tests/tools/version_matrix.py                  all sets of diffusers, transformers, ...
    python tests/tools/version_matrix.py oldest colab     some of them

Each set is a fresh virtual environment, about 3 minutes and 2 GB. All have torch 2.13.0 and the
Python that runs this script. image-reward and open_clip_torch are installed without their
dependencies, so that their tests as oracles run too. Prints one line per set and ends with an error
if a set fails.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TORCH = "torch==2.13.0"
ROOT = Path(__file__).parent.parent.parent
COLAB = [
    line
    for line in (ROOT / "tests" / "constraints-colab.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
# transformers 4.x needs huggingface_hub below 1, diffusers from 0.40 on needs it above
SETS = {
    "newest": [
        "diffusers==0.42.1",
        "transformers==5.23.0",
        "huggingface_hub==2.4.0",
        "numpy==2.4.6",
        "pillow==13.0.0",
    ],
    "colab": COLAB,
    "oldest": [
        "diffusers==0.35.2",
        "transformers==4.57.6",
        "huggingface_hub==0.36.2",
        "numpy==1.26.4",
        "pillow==10.1.0",
    ],
}
ORACLES = ["image-reward==1.5", "open_clip_torch==3.3.0", "ftfy==6.3.1"]
OTHERS = ["safetensors", "jaxtyping>=0.3,<0.4", "scikit-image", "matplotlib", "tqdm", "pytest"]
OTHERS += ["wcwidth"]  # of ftfy
TESTED = ["stable_diffusion_prior", "real_rung", "learned_checkpoint"]
TESTED += ["image_reward", "clip_rewards"]
TESTS = [f"tests/test_{name}.py" for name in TESTED]


def run_set(name: str) -> tuple[bool, str]:
    """Install one set and run the tests with it: (whether they passed, what to print)."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix=f"psd-mini-{name}-") as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = str(Path(folder) / "bin" / "python")
        # torch comes first and alone: together with the rest, pip may fetch gigabytes of CUDA
        for what in ([TORCH], [TORCH, *SETS[name], *OTHERS], ["--no-deps", *ORACLES]):
            command = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *what]
            installed = subprocess.run(command, capture_output=True, text=True)
            if installed.returncode:
                return False, installed.stderr[-2000:]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        options = ["-o", "addopts=", "-q", "-p", "no:cacheprovider", "-rfEs", "--tb=short"]
        command = [python, "-m", "pytest", *options, *TESTS]
        tested = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        printed = tested.stdout.strip() or tested.stderr.strip() or "no output"
        seconds = time.perf_counter() - started
        text = f"{printed.splitlines()[-1]} ({seconds:.0f} s with installation)"
        if tested.returncode:
            text += f"\n{tested.stdout[-6000:]}{tested.stderr[-1000:]}"
        return tested.returncode == 0, text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", help=f"of {', '.join(SETS)}; all by default")
    names = parser.parse_args().sets or list(SETS)
    passed = []
    for name in names:
        if name not in SETS:
            parser.error(f"{name!r} is no set; choose from {', '.join(SETS)}")
        fine, text = run_set(name)
        passed.append(fine)
        outcome = "PASSED" if fine else "FAILED"
        print(f"{name}: {' '.join(SETS[name])}: {outcome}: {text}", flush=True)
    sys.exit(0 if all(passed) else 1)
