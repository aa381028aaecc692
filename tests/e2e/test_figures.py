"""What the scripts of tests/eval count as right, go on with and leave out."""

import argparse
import contextlib
import io
import json
import subprocess
import sys

import numpy as np

import lib

sys.path.insert(0, str(lib.ROOT / "tests/eval"))
import answers  # noqa: E402
import facts  # noqa: E402
import grid  # noqa: E402
import questions  # noqa: E402


def test_answers_are_right_as_they_are():
    assert answers.is_right("1,042", "It was 1042 dollars.")
    assert answers.is_right("260", "260kilos") and answers.is_right("QX-71", "code qx-71.")
    assert not answers.is_right("789", "The address is 123456789.")
    assert not answers.is_right("17", "It takes 170 minutes.")


def test_facts_go_on_with_what_is_missing():
    """Figures without the far facts, which a run with them adds."""
    kept, looked = (facts.ask_hits, facts.kept_stream), []
    facts.kept_stream = lambda path, make: (b"", [], [])
    facts.ask_hits = lambda options, streams, folder, length, results: (
        looked.append(folder), results["hits"].append({
            "distance": facts.FARTHEST if folder == "find-long" else 10000}))
    options = argparse.Namespace(qmsum=None, facts=4, seed=2, data=lib.folder(), length=120000,
                                 far=False, hits=True, answers=0)
    try:
        results = {"hits": [], "answers": [], "qmsum": []}
        facts.run(argparse.Namespace(**dict(vars(options), far=True, hits=False)), results, list)
        facts.run(options, results, list)
        for _ in range(2):
            facts.run(argparse.Namespace(**dict(vars(options), far=True)), results, list)
    finally:
        facts.ask_hits, facts.kept_stream = kept
    assert looked == ["find", "find-long"], looked


def test_what_has_left_the_ring():
    """By the adapter's own ring, or the one that silt-eval is told."""
    home = lib.folder()
    subprocess.run([lib.BUILD / "tests/make-tiny", home], check=True)
    (home / "set.jsonl").write_text(json.dumps({"tokens": [1] * questions.CHUNK * 20}) + "\n")
    for more, cold in (([], 16), (["--ring", "8"], 12), (["--ring", "30"], 0)):
        arguments = argparse.Namespace(adapter=home / "tiny-adapter.gguf", more=more)
        item, = questions.read_items(home / "set.jsonl", arguments)
        assert questions.cold_chunks(item) == cold, (more, questions.cold_chunks(item))


def test_the_grid_of_some_kinds():
    """A folder with too little text of some kinds, and for the long stream."""
    home = lib.folder()
    np.save(home / "dialogue.npy", np.ones((2, 300), np.uint16))
    (home / "runs").mkdir()
    grid.make_streams(home, home / "runs", None)
    lines = (home / "runs/streams.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["dialogue 1", "dialogue 2"]
    assert not (home / "runs/long.jsonl").exists()
    one = {"dialogue": {"nll": 3.0, "rows": 9.0, "ratio": 1.0}}
    with contextlib.redirect_stdout(io.StringIO()) as out:
        grid.print_grid({"full": one, "ccm 1x": one, "window 1x": one, "ccm-swap 1x": one})
    assert "| 1x rows | 9 |" in out.getvalue()


if __name__ == "__main__":
    lib.main(globals())
