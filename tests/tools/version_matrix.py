"""Tests of the learned priors and ImageReward with several versions of diffusers, transformers.

    python tests/tools/version_matrix.py                  all sets
    python tests/tools/version_matrix.py oldest colab     some of them

A set has a fresh virtual environment and takes about 3 minutes and 2 GB. All run with torch 2.13.0
and the Python that runs this script; image-reward 1.5 is installed without its dependencies, so
that its test as an oracle runs too. Prints one line per set and ends with an error if a set fails.
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
# transformers 4.x needs huggingface_hub below 1, which diffusers has needed to be above from 0.40
# on
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
OTHERS = ["safetensors", "jaxtyping>=0.3,<0.4", "scikit-image", "matplotlib", "tqdm", "pytest"]
TESTS = [
    f"tests/test_{name}.py"
    for name in ("stable_diffusion_prior", "real_rung", "image_reward", "learned_checkpoint")
]


def run_set(name: str) -> tuple[bool, str]:
    """Install one set and run the tests with it: (whether they passed, what to print)."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix=f"psd-mini-{name}-") as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = str(Path(folder) / "bin" / "python")
        # torch comes alone and first: resolved together with the rest, pip may fetch gigabytes of
        # CUDA libraries
        for what in ([TORCH], [TORCH, *SETS[name], *OTHERS], ["--no-deps", "image-reward==1.5"]):
            command = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *what]
            installed = subprocess.run(command, capture_output=True, text=True)
            if installed.returncode:
                return False, installed.stderr[-2000:]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [
            python,
            "-m",
            "pytest",
            "-o",
            "addopts=",
            "-q",
            "-p",
            "no:cacheprovider",
            "-rfEs",
            "--tb=short",
            *TESTS,
        ]
        tested = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        lines = (
            tested.stdout.strip().splitlines()
            or tested.stderr.strip().splitlines()
            or ["no output"]
        )
        detail = (
            "" if tested.returncode == 0 else "\n" + tested.stdout[-6000:] + tested.stderr[-1000:]
        )
        return (
            tested.returncode == 0,
            f"{lines[-1]} ({time.perf_counter() - started:.0f} s with installation){detail}",
        )


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
        print(
            f"{name}: {' '.join(SETS[name])}: {'PASSED' if fine else 'FAILED'}: {text}", flush=True
        )
    sys.exit(0 if all(passed) else 1)
