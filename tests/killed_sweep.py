"""`psd-mini` for a test that kills it: of several workers, number 1 dies once, in its third write.

python killed_sweep.py sweep prompts.txt ...
"""

import os
import signal
import sys
from pathlib import Path

from worlds import quick_results

from psd_mini.pipelines import cli


class Lasting:
    """pytest's monkeypatch, for a process of its own."""

    setattr = staticmethod(setattr)


if __name__ == "__main__":
    quick_results(Lasting())
    fsync, written = os.fsync, []

    def dying_fsync(number):
        written.append(number)
        if len(written) == 3 and not Path("killed").exists():
            Path("killed").touch()
            os.truncate(number, os.fstat(number).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(number)

    if os.environ.get("RANK") == "1":
        os.fsync = dying_fsync
    cli.main(sys.argv[1:])
