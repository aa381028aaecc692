"""The short form of soak/budget.py: streams fed and asked at once stay within the plan."""

import re
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


def test_silt_says_the_plan_as_siltd_does():
    with lib.Daemon(*lib.tiny()) as siltd:
        lines = lib.silt(siltd.endpoint, "plan").out.decode().splitlines()[1:]
        said = re.findall(r"^  (\S.*?)  +(?:\d+ x +[\d.]+ \w+ +)?([\d.]+ \w+)", siltd.log_text(),
                          re.M)
        assert len(lines) == len(said) > 10, (lines, said)
        for line, (name, size) in zip(lines, said):
            assert name in line.replace("total", "sum") and f"  {size}  " in line, (line, size)


if __name__ == "__main__":
    lib.main(globals())
