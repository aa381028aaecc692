"""The short form of soak/budget.py: streams fed and asked at once stay within the plan."""

import subprocess
import sys

import lib


def test_streams_stay_within_the_plan():
    lib.tiny()
    done = subprocess.run(
        [sys.executable, str(lib.ROOT / "soak/budget.py"), "--streams", "4", "--tokens", "12000"],
        capture_output=True, check=False, timeout=200 * lib.SLOW)
    text = (done.stdout + done.stderr).decode()
    print(text)
    assert done.returncode == 0 and "budget: all held" in text, text


if __name__ == "__main__":
    lib.main(globals())
