#!/usr/bin/env bash
# Gradescope runs this once, when the autograder is built.
apt-get install -y python3-pip python3-venv
python3 -m venv /autograder/venv
/autograder/venv/bin/pip install torch --index-url https://download.pytorch.org/whl/cpu
/autograder/venv/bin/pip install git+https://github.com/OWNER/psd_mini@main
