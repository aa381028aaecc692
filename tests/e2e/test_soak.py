"""The soaks of Python for a moment each, so that they work when they are wanted for a day."""

import subprocess
import sys

import lib


def soak(name, *args):
    lib.tiny()
    done = subprocess.run([sys.executable, lib.ROOT / "soak" / name, "--seed", "4", *args],
                          capture_output=True, check=False, timeout=280 * lib.SLOW,
                          env={**lib.os.environ, "BUILD": str(lib.BUILD)})
    said = done.stdout.decode() + done.stderr.decode()
    assert done.returncode == 0 and "all held" in said, said
    print(said)
    return said


def test_churn():
    assert " 0 with another memory" in soak("churn.py", "--minutes", "0.3")


def test_chaos():
    assert "acked, 0 lost" in soak("chaos.py", "--minutes", "0.3")


def test_feed_over_rotation_and_kills():
    said = soak("feed.py", "--minutes", "0.4", "--kill-seconds", "8", "--rotate", "0.05")
    assert "1 of 1 streams equal" in said and " 0 rotations" not in said, said


def test_feed_of_many_files():
    said = soak("feed.py", "--minutes", "0.3", "--files", "100", "--kill-seconds", "9",
                "--rotate", "0.1")
    assert "100 of 100 streams equal" in said, said


if __name__ == "__main__":
    lib.main(globals())
