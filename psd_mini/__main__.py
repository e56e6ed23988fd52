"""`python -m psd_mini` is the command `psd-mini`."""

from psd_mini.pipelines.cli import main

main()
