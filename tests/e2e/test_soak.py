"""The soaks of Python for a moment each, so that they work when they are wanted for a day; and how
soak/faults adds up what its tasks say."""

import os
import re
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


# Programs in place of the tests that soak/faults runs: one a moment long, one that shares calls.
ROT = """#!/bin/sh
sleep "$(cat "$0.seconds")"
[ "$SILT_SEED" != "$(cat "$0.fails")" ] || { echo "round 7 of seed $SILT_SEED: a flip"; exit 1; }
printf 'file,damage,refused,noticed,harmless,wrong\\njournal,flip,1,2,97,0\\n' >"$SILT_CSV"
echo "damages: $SILT_ROUNDS, refused 1, noticed 2, harmless 97, wrong 0"
"""
NTH = """#!/bin/sh
n=0 at=${SILT_FROM:-1}
while [ $at -le 100 ]; do n=$((n + 1)) at=$((at + ${SILT_STRIDE:-1})); done
[ "${SILT_STRIDE:-1}" = 1 ] && echo "EIO: each of $n reads of it" ||
    echo "EIO: $n reads of it, each $SILT_STRIDE. from $SILT_FROM"
[ "${SILT_FROM:-1}" != 1 ] || echo "4 a write: 9 ways of each of 12 reads, 3 writes and 0 syncs"
"""


def faults(build, part, root=lib.ROOT, **env):
    done = subprocess.run([lib.ROOT / "soak/faults", part], capture_output=True, check=False,
                          cwd=root, timeout=60 * lib.SLOW,
                          env={**os.environ, "BUILD": str(build), "RESULTS": str(build / "results"),
                               "JOBS": "3", **env})
    texts = list((build / "results").glob(f"{part}*.txt"))
    assert len(texts) == 1, (texts, done.stderr)
    return done.returncode, texts[0].read_text(), done.stderr.decode()


def test_faults_add_up():
    build = lib.folder() / "build"
    (build / "tests").mkdir(parents=True)
    rot = build / "tests/test_rot"
    for name, text in (("rot", ROT), ("fault", NTH), ("spill_fault", NTH), ("recall_fault", NTH),
                       ("checkpoint_fault", NTH)):
        (build / f"tests/test_{name}").write_text(text)
        (build / f"tests/test_{name}").chmod(0o755)
    seconds, fails = rot.with_name("test_rot.seconds"), rot.with_name("test_rot.fails")
    seconds.write_text("0")
    fails.write_text("none")
    code, said, _ = faults(build, "rot", ROUNDS="400")
    assert (code, said) == (0, "in all: 400 damages, refused 4, noticed 8, harmless 388, wrong 0\n")
    table = next((build / "results").glob("rot*.csv")).read_text()
    assert table.endswith("journal,flip,4,8,388,0\n"), table
    code, said, _ = faults(build, "nth")
    assert code == 0 and said.count("EIO: each of 100 reads of it\n") == 4, said
    assert said.count("4 a write: 9 ways of each of 12 reads, 3 writes and 0 syncs\n") == 4, said
    fails.write_text("3")  # of the seeds 1 to 4
    code, said, error = faults(build, "rot", ROUNDS="400")
    assert code == 1 and "in all: 300 damages" in said and "SILT_SEED=3" in error, (said, error)
    assert "FAILED: 1 of 4 tasks\n" in said, said
    assert "round 7 of seed 3" in (build / "logs/faults-rot.2.log").read_text()
    seconds.write_text("30")
    code, said, _ = faults(build, "rot", ROUNDS="400", LIMIT="1")
    assert code == 75 and "left out for lack of time: 4 of 4 tasks" in said, (code, said)
    # What was not tried has not held.
    rot.write_text("#!/bin/sh\necho skip: no disk\nexit 77\n")
    code, said, _ = faults(build, "rot", ROUNDS="400")
    assert code == 1 and said.endswith("skipped: 4 of 4 tasks\n"), (code, said)
    for part, more, why in (("rto", {}, "no part is called rto"),
                            ("rot", {"ROUNDS": "0"}, "rot: FAILED: there is nothing to run")):
        done = subprocess.run([lib.ROOT / "soak/faults", part], capture_output=True, check=False,
                              cwd=lib.ROOT, timeout=60 * lib.SLOW,
                              env={**os.environ, "BUILD": str(build), "RESULTS": str(build),
                                   **more})
        assert done.returncode and why in done.stderr.decode(), done.stderr


def test_faults_miss_tests_that_cannot_be_listed():
    root = lib.folder()
    (root / "tests/e2e").mkdir(parents=True)
    (root / "bin").mkdir()
    (root / "bin/pkg-config").write_text("#!/bin/sh\nexit 1\n")  # what runs was built elsewhere
    (root / "bin/pkg-config").chmod(0o755)
    groups = re.search(r"for group in (.*);", (lib.ROOT / "soak/faults").read_text())[1].split()
    for group in groups:
        (root / f"tests/e2e/test_{group}.py").write_text(
            "import nowhere" if group == "recall" else f"print('test_{group}')")
    code, said, error = faults(root / "build", "threads", root, TESTS="/test_",
                               PATH=f"{root}/bin:{os.environ['PATH']}")
    assert code == 1 and "test_recall.py does not list its tests" in error, (code, error)
    assert "e2e/kill/kill: exit 0, 0 races" in said and "recall" not in said, said


def test_nothing_is_left_of_a_soak_that_is_ended():
    lib.tiny()
    process = lib.spawn(sys.executable, lib.ROOT / "soak/churn.py", "--minutes", "5",
                        stdout=subprocess.PIPE, env={**os.environ, "BUILD": str(lib.BUILD)})
    assert process.stdout.readline().startswith(b"churn: seed")
    child = lib.wait_until("siltd is there", lambda: subprocess.run(
        ["pgrep", "-P", str(process.pid), "siltd"], capture_output=True, check=False).stdout)
    process.terminate()
    assert lib.ends(process) == 143
    assert not os.path.exists(f"/proc/{int(child.split()[0])}"), "siltd is left"


if __name__ == "__main__":
    lib.main(globals())
