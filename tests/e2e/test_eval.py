"""silt-eval on the tiny model: what its policies must agree on, and what it says when it cannot."""

import argparse
import json
import pathlib
import struct
import subprocess
import sys

import lib

sys.path.insert(0, str(lib.ROOT / "tests/eval"))
import answers  # noqa: E402
import forms  # noqa: E402
import questions  # noqa: E402
import tasks  # noqa: E402

EVAL = lib.BUILD / "silt-eval"
MAKE_TINY = lib.BUILD / "tests/make-tiny"
WORDS = ["the", "keeper", "of", "lock", "12", "saw", "a", "boat", "at", "06:15,", "then", "rain"]


class Trial:
    """A folder with the tiny model, its adapter and texts."""

    def __init__(self):
        self.home = lib.folder()
        subprocess.run([MAKE_TINY, self.home], check=True)

    def run(self, text, policy, *args, code=0, adapter=True):
        command = [EVAL, "--model", self.home / "tiny.gguf", "--text", text, "--policy", policy,
                   "--json", *args]
        if adapter:
            command += ["--adapter", self.home / "tiny-adapter.gguf"]
        done = subprocess.run([str(word) for word in command], capture_output=True, check=False,
                              timeout=120 * lib.SLOW)
        assert done.returncode == code, (command, done.returncode, done.stderr)
        if code:
            assert b"Traceback" not in done.stderr and len(done.stderr) > 20, done.stderr
            return done.stderr.decode()
        return [json.loads(line) for line in done.stdout.splitlines()]

    def write(self, name, *texts):
        path = self.home / name
        if name.endswith(".txt"):
            path.write_text(texts[0])
        else:
            path.write_text("".join(json.dumps({"id": f"d{i}", "kind": "test", "text": text}) + "\n"
                                    for i, text in enumerate(texts)))
        return path


def story(seed, words):
    out = []
    for i in range(words):
        seed = (seed * 1103515245 + 12345) % (1 << 31)
        out.append(WORDS[(seed >> 16) % len(WORDS)] + (".\n" if i % 17 == 16 else ""))
    return " ".join(out)


def near(a, b, least=1e-6):
    assert abs(a - b) <= least, (a, b)


def test_what_a_line_says():
    trial = Trial()
    text = trial.write("two.jsonl", story(1, 900), story(2, 400))
    first, second, total = trial.run(text, "full", "--context", 600)
    assert (first["document"], first["kind"], first["policy"]) == ("d0", "test", "full")
    assert total["total"] is True and "document" not in total
    assert total["tokens"] == first["tokens"] + second["tokens"]
    for line in (first, second):
        assert line["tokens_scored"] == line["tokens"] - 1
        near(sum(line["nll_quarters"]) / 4, line["nll"], 0.01)
        assert line["dmc_ratio"] == 1 and line["tokens_per_second"] > 0
    near((first["nll"] * first["tokens_scored"] + second["nll"] * second["tokens_scored"]) /
         total["tokens_scored"], total["nll"], 1e-5)
    n = first["tokens"]
    assert n > 1200
    near(first["kv_rows_mean"], (600 * 601 / 2 + (n - 600) * 600) / n, 1e-3)
    assert first["kv_bytes_peak"] == 600 * 2 * 2 * 4 * 2 * 32
    cut = trial.run(text, "full", "--tokens", 100, "--documents", 1)
    assert len(cut) == 2 and cut[1]["tokens"] == 100


def test_policies_agree_where_they_must():
    trial = Trial()
    same = story(3, 1500)
    short = trial.write("short.jsonl", story(4, 150), story(5, 90))
    full = trial.run(short, "full", "--tokens", 256)[-1]
    assert full["tokens"] == 512
    # In its first chunk a stream without merging sees what a full context sees.
    near(trial.run(short, "ccm", "--dmc", 1, "--tokens", 256)[-1]["nll"], full["nll"], 2e-3)
    twins = trial.write("twins.jsonl", same, same)
    ccm = trial.run(twins, "ccm", "--dmc", 4)[-1]
    assert ccm["tokens"] > 3000 and ccm["dmc_ratio"] > 2
    # The memory of a document just like one's own is one's own.
    near(trial.run(twins, "ccm-swap", "--dmc", 4)[-1]["nll"], ccm["nll"])
    assert abs(trial.run(twins, "none", "--dmc", 4)[-1]["nll"] - ccm["nll"]) > 1e-3
    others = trial.write("others.jsonl", same, story(6, 1500))
    assert abs(trial.run(others, "ccm-swap", "--dmc", 4)[0]["nll"] - ccm["nll"]) > 1e-4
    for policy in ("window", "window+lora"):
        window = trial.run(twins, policy, "--dmc", 4)[-1]
        near(window["kv_rows_mean"], ccm["kv_rows_mean"], 0.5)
    near(trial.run(twins, "window", "--kv-rows", 300, adapter=False)[-1]["nll"],
         trial.run(twins, "full", "--context", 300, adapter=False)[-1]["nll"])


def test_blocks_are_independent():
    trial = Trial()
    text = trial.write("long.txt", story(7, 900))
    total = trial.run(text, "full", "--block", 128)[-1]
    blocks = total["tokens"] // 128
    assert total["tokens"] == blocks * 128 and blocks > 5
    assert total["tokens_scored"] == blocks * 63
    near(total["kv_rows_mean"], 64.5)
    # A block is as a document of its own: its first one, scored from the middle on.
    one = trial.run(text, "full", "--block", 128, "--tokens", 128)[-1]
    whole = trial.run(text, "full", "--tokens", 128)[-1]
    near(one["nll"], sum(whole["nll_quarters"][2:]) / 2, 0.2)  # but for the token at 64


def test_joined_and_packed_texts():
    trial = Trial()
    parts = [story(8, 200), story(9, 200)]
    lines = trial.write("parts.jsonl", *parts)
    joined = trial.run(lines, "full", "--join")
    assert len(joined) == 2
    plain = trial.run(trial.write("plain.txt", "\n\n".join(parts)), "full")
    assert joined[-1]["tokens"] == plain[-1]["tokens"]
    near(joined[-1]["nll"], plain[-1]["nll"])
    cut = trial.run(lines, "full", "--join", "--tokens", 300, "--streams", 2)
    assert [line["tokens"] for line in cut] == [300, 300, 600]
    near(cut[0]["nll"], trial.run(lines, "full", "--join", "--tokens", 300)[-1]["nll"])
    assert abs(cut[1]["nll"] - cut[0]["nll"]) > 1e-4
    assert "--join" in trial.run(lines, "full", "--streams", 2, code=2)
    packed = subprocess.run(["zstd", "-q", "-k", lines], check=False)
    if packed.returncode == 0:
        assert trial.run(str(lines) + ".zst", "full")[-1]["nll"] == \
            trial.run(lines, "full")[-1]["nll"]
    torn = trial.home / "torn.jsonl.zst"
    torn.write_bytes(b"no zstd at all")
    assert "zstd" in trial.run(torn, "full", code=1)


def test_tokens_in_place_of_text():
    trial = Trial()
    text = trial.write("text.jsonl", story(8, 60))
    tokens = trial.run(text, "full")[0]["tokens"]
    path = trial.home / "tokens.jsonl"
    path.write_text(json.dumps({"id": "t", "tokens": [7] * tokens}) + "\n")
    line = trial.run(path, "full", "--context", 100)[0]
    assert (line["document"], line["tokens"]) == ("t", tokens)
    path.write_text(json.dumps({"id": "t", "tokens": [7, 99999999]}) + "\n")
    assert "Invalid argument" in trial.run(path, "full", code=1)


def test_memory_of_others():
    """Side by side or one by one; a document's own twin, next to it or half of them away."""
    trial = Trial()
    near_twins = trial.write("near.jsonl", story(1, 400), story(1, 400), story(2, 400),
                             story(2, 400))
    far_twins = trial.write("far.jsonl", story(1, 400), story(2, 400), story(1, 400),
                            story(2, 400))
    for lanes in (1, 3, 64):
        more = ("--dmc", 2, "--lanes", lanes)
        own = trial.run(near_twins, "ccm", *more)
        near(trial.run(near_twins, "ccm-swap", *more)[0]["nll"], own[0]["nll"])
        near(trial.run(far_twins, "ccm-foreign", *more)[1]["nll"], own[2]["nll"])
        assert trial.run(far_twins, "ccm-swap", *more)[0]["nll"] != own[0]["nll"]
        without = trial.run(near_twins, "no-summary", *more)
        assert without[0]["nll"] != own[0]["nll"]
        assert without[0]["kv_rows_mean"] < own[0]["kv_rows_mean"]


def test_questions_behind_documents():
    trial = Trial()
    path = trial.home / "asked.jsonl"
    lines = [{"id": f"q{i}", "text": story(20 + i, 300), "question": "who saw it?",
              "answer": "The keeper, at 06:15."} for i in range(2)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second, total = trial.run(path, "ccm", "--ask", "--dmc", 1)
    assert (first["document"], first["policy"], total["questions"]) == ("q0", "ccm", 2)
    near((first["answer_nll"] + second["answer_nll"]) / 2, total["answer_nll"], 1e-5)
    assert 0 <= total["f1"] <= 1 and "said" in first
    assert abs(trial.run(path, "none", "--ask", "--dmc", 1)[-1]["answer_nll"] -
               total["answer_nll"]) > 1e-4
    # Before anything is compressed, a fork sees what a full context sees.
    short = trial.home / "short.jsonl"
    short.write_text(json.dumps(dict(lines[0], text=story(22, 5))) + "\n")
    near(trial.run(short, "ccm", "--ask", "--dmc", 1)[-1]["answer_nll"],
         trial.run(short, "full", "--ask")[-1]["answer_nll"], 2e-3)
    # A chunk that has left the ring comes back; side by side answers are the same.
    path.write_text("".join(json.dumps(dict(line, recall=[0])) + "\n" for line in lines))
    few = ("--ask", "--dmc", 1, "--ring", 1)
    recalled = trial.run(path, "ccm", *few)
    assert recalled == trial.run(path, "ccm", *few, "--lanes", 2)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for line, with_recall in zip(trial.run(path, "ccm", *few), recalled):
        assert line["answer_nll"] != with_recall["answer_nll"]
    # One stream asked again, with and without the chunk, is as if it were read again.
    path.write_text("".join(json.dumps(line) + "\n" for i in (0, 1) for line in (
        lines[i], {"again": True, "id": "again", "question": "who saw it?", "recall": [0],
                   "answer": "The keeper, at 06:15."})))
    plain = trial.run(path, "ccm", *few)
    assert [line["answer_nll"] for line in plain[1::2]] == \
        [line["answer_nll"] for line in recalled[:2]]
    assert plain[0]["answer_nll"] != plain[1]["answer_nll"]
    assert plain == trial.run(path, "ccm", *few, "--lanes", 2)
    assert plain[-1]["questions"] == 4
    assert "text" in trial.run(path, "full", "--ask", code=1)
    # Text read again before a question is as if the stream had it, before all is compressed.
    one = dict(lines[0], text=story(22, 3))
    short.write_text(json.dumps(dict(one, text=one["text"] + story(23, 3))) + "\n" +
                     json.dumps(dict(one, before=story(23, 3))) + "\n")
    whole, again, _ = trial.run(short, "ccm", "--ask", "--dmc", 1)
    near(whole["answer_nll"], again["answer_nll"], 2e-3)
    assert whole["answer_nll"] != trial.run(path, "ccm", *few)[0]["answer_nll"]
    assert "question" in trial.run(trial.write("none.jsonl", "text"), "ccm", "--ask", code=1)
    assert "--ask" in trial.run(path, "window", "--ask", code=2)


def test_choices_behind_documents():
    trial = Trial()
    path = trial.home / "choices.jsonl"
    choices = ["The keeper, at 06:15.", " a boat\n", "rain"]
    some = [{"question": "who saw it?", "choices": choices},
            {"question": "\n\nthen the keeper saw", "choices": choices[1:], "raw": True}]

    def choose(policy, questions_, *more, words=300, documents=2, code=0):
        path.write_text("".join(json.dumps(
            {"id": f"d{i}", "text": story(20 + i, words), "questions": questions_}) + "\n"
            for i in range(documents)))
        return trial.run(path, policy, "--choose", "--dmc", 1, *more, code=code)

    lines = choose("ccm", some)
    assert [line["document"] for line in lines] == ["d0", "d1"]
    assert [len(question["losses"]) for question in lines[0]["questions"]] == [3, 2]
    # Of a question with an answer, --ask says the mean of the answer's tokens.
    asked = trial.home / "asked.jsonl"
    asked.write_text(json.dumps({"text": story(20, 300), "question": "who saw it?",
                                 "answer": choices[0]}) + "\n")
    for policy in ("ccm", "full"):
        each = trial.run(asked, policy, "--ask", "--dmc", 1)[0]["answer_nll"]
        tokens = choose(policy, some)[0]["questions"][0]["losses"][0] / each
        assert tokens > 2 and abs(tokens - round(tokens)) < 1e-3, (policy, tokens)
    # Whatever else is asked, in whatever company, and in however many lanes.
    assert choose("ccm", some[::-1] + some)[1]["questions"][1:3] == [lines[1]["questions"][0]] * 2
    assert choose("ccm", some, "--lanes", 3) == lines
    full = choose("full", some)
    for one, other in zip(full, choose("full", some[::-1], "--lanes", 2)):
        for a, b in zip(one["questions"], other["questions"][::-1]):
            for c, d in zip(a["losses"], b["losses"]):
                near(c, d, 1e-3)
    # Before anything is compressed, a fork sees what a full context sees.
    pairs = [choose(policy, some, words=5)[0]["questions"] for policy in ("ccm", "full")]
    for a, b in zip(*pairs):
        for c, d in zip(a["losses"], b["losses"]):
            near(c, d, 1e-2)
    # Text read again before a question is as if the stream had it, in front of a turn or of text.
    one = {"id": "d", "text": story(22, 3), "questions": [dict(q, before=story(23, 3))
                                                          for q in some]}
    path.write_text(json.dumps(dict(one, text=one["text"] + story(23, 3), questions=some)) + "\n" +
                    json.dumps(one) + "\n")
    pair = trial.run(path, "ccm", "--choose", "--dmc", 1)
    for a, b in zip(*[line["questions"] for line in pair]):
        assert b["tokens"] > a["tokens"]
        for c, d in zip(a["losses"], b["losses"]):
            near(c, d, 2e-2)
    # A chunk that has left the ring comes back for the question that names it, and no other.
    few = choose("ccm", some, "--ring", 1)
    again = choose("ccm", [dict(some[0], recall=[0]), some[1]], "--ring", 1)
    for one, other in zip(few, again):
        assert [question["recalled"] for question in other["questions"]] == [1, 0]
        assert one["questions"][0]["losses"] != other["questions"][0]["losses"]
        assert one["questions"][1] == other["questions"][1]
    assert choose("none", some)[0]["questions"][0]["losses"] != few[0]["questions"][0]["losses"]
    assert "choices" in choose("ccm", [dict(some[0], choices=["a"] * 17)], code=1)
    assert "choices" in choose("ccm", [], code=1)
    assert "Invalid argument" in choose("ccm", [dict(some[0], choices=[""])], code=1)
    assert "Invalid argument" in choose("full", some, "--context", 64, code=1)
    assert "--choose" in choose("ccm", some, "--ask", code=2)


def test_the_grid_goes_on_where_it_was():
    """tests/eval/grid.py: a run whose figures are there is not run again, and all go to the CSV."""
    trial = Trial()
    runs, results = trial.home / "runs", trial.home / "results"
    runs.mkdir()
    kinds = ("dialogue", "meeting", "log", "mixed", "book")
    (runs / "streams.jsonl").write_text("".join(
        json.dumps({"id": f"{kind} {i}", "kind": kind,
                    "tokens": [(7 * i + 3 * t + len(kind)) % 250 for t in range(150)]}) + "\n"
        for kind in kinds for i in range(3)))
    (runs / "long.jsonl").write_text("".join(
        json.dumps({"id": name, "kind": "long", "tokens": [t % 250 for t in range(size)]}) + "\n"
        for name, size in (("late", 400), ("early", 100))))

    command = [lib.ROOT / "tests/eval/grid.py", trial.home, "--runs", runs, "--results", results,
               "--program", EVAL, "--device", "cpu"]

    def grid(only):
        done = subprocess.run(
            [*command, "--only", only, "--", "--model", trial.home / "tiny.gguf", "--adapter",
             trial.home / "tiny-adapter.gguf"],
            capture_output=True, check=True, timeout=300 * lib.SLOW)
        return done.stdout.decode()

    assert " of 3  " in grid("full,ccm 1x,window 1x")
    said = grid("full,ccm 1x,ccm-foreign 1x,drift 1x")
    assert " of 2  " in said and "content share, ccm-foreign" in said
    assert "drift over 400 tokens, 1x" in said
    lines = (results / "engine.csv").read_text().splitlines()
    assert lines[0].startswith("# CPU, commit ") and "adapter tiny-adapter.gguf" in lines[0]
    rows = [dict(zip(lines[1].split(","), line.split(","))) for line in lines[2:]]
    assert [row["text"] for row in rows] == list(kinds)
    assert all(float(row[name]) > 0 for row in rows
               for name in ("full", "window", "ccm", "foreign", "rows", "ratio"))
    assert {row["none"] for row in rows} == {""}
    # Figures of another adapter do not go on with these, and a run that fails is not passed over.
    other = trial.home / "other.gguf"
    other.write_bytes((trial.home / "tiny-adapter.gguf").read_bytes() + b"\0")
    for adapter, fails in ((other, "adapter"), (trial.home / "tiny-adapter.gguf", "none 1x")):
        (runs / "streams.jsonl").write_text("{")
        done = subprocess.run([*command, "--only", "none 1x", "--", "--model",
                               trial.home / "tiny.gguf", "--adapter", adapter],
                              capture_output=True, check=False, timeout=300 * lib.SLOW)
        assert done.returncode == 1 and fails in done.stderr.decode(), done.stderr
        assert b"Traceback" not in done.stderr
    # What a run said of one stream is what it says of them all.
    own = json.loads((runs / "ccm 1x.json").read_text().splitlines()[-2])
    near(sum(float(row["ccm"]) for row in rows) / len(rows), own["nll"], 1e-3)


def test_found_text_is_put_as_siltd_puts_it():
    found = {"excerpt": "The keeper saw it.", "about": True, "all": [20, 3, 1], "cold": [3, 5]}
    source = (lib.ROOT / "daemon/ask_recall.c").read_text()
    words = forms.Vocabulary(Trial().home / "tiny.gguf")
    item = {"id": "q", "question": "Who?", "answer": "He.",
            "tokens": [words.bytes.index(b"x")] * questions.CHUNK * (questions.RING + 10)}
    line = forms.FORMS[forms.SHIPPED]
    assert f"AROUND_TOKENS = {line.window}, " in source
    assert line.apart and line.vague
    twice = forms.prompt(line, "Who?", found, item["tokens"], words)
    before, middle, after = twice.split(found["excerpt"])
    for text in (before, middle.split("Who?")[0].lstrip("\n"), after.lstrip("\n")):
        assert json.dumps(text) in source, text
    once = forms.prompt(line, "Who?", dict(found, about=False), item["tokens"], words)
    assert once + "\n\n" == before + found["excerpt"] + middle
    assert forms.prompt(line, "Who?", dict(found, excerpt=""), item["tokens"], words) == "Who?"
    assert questions.asked(words, item, found, "auto", forms.SHIPPED)["recall"] == [1, 3]
    assert questions.asked(words, item, found, "segments")["recall"] == [3, 5]
    assert "recall" not in questions.asked(words, item, found, "ring")


def test_forms_put_what_is_around_what_is_found():
    words = forms.Vocabulary(Trial().home / "tiny.gguf")
    letters = [words.bytes.index(bytes([byte])) for byte in b"abcdefgh"]
    tokens = [token for token in letters for _ in range(forms.CHUNK)]
    found = {"excerpt": "c" * 9 + "d" * 9, "about": False, "all": [2, 6, 0], "cold": []}

    def put(**form):
        text = forms.prompt(forms.Form(use="", ask="", **form), "Who?", found, tokens, words)
        return text.split("\n\n")[:-1]

    def chunks(letters):
        return "".join(letter * forms.CHUNK for letter in letters)

    assert put(line=True) == [found["excerpt"]]
    assert put(chunks=2, line=False) == [chunks("c"), chunks("g")]
    assert put(chunks=4, around=1) == [chunks("bcd"), chunks("g"), found["excerpt"]]
    assert put(window=100, line=False) == ["c" * 50 + "d" * 50]
    apart = forms.Form(window=100, apart=True, use="", ask="")
    assert forms.before(apart, found, tokens, words) == "c" * 50 + "d" * 50
    assert put(window=100, apart=True) == [found["excerpt"]]
    found["about"] = True
    assert put(chunks=2, line=False, vague=True)[0] == found["excerpt"]


def test_no_siltd_is_left_behind():
    """tests/eval/facts.py without a silt to ask, and with a siltd that does not start."""
    home, (model, _) = lib.folder(), lib.tiny()
    build, root = home / "build", answers.ROOT
    build.mkdir()
    (build / "siltd").symlink_to(lib.SILTD)
    answers.ROOT = home
    try:
        for more, error in ((["--model", str(model)], FileNotFoundError), (["--no"], SystemExit)):
            daemon = answers.Daemon(home / "data", None, more, 2)
            try:
                with daemon:
                    raise AssertionError("it serves without a silt that says so")
            except error as why:
                text = str(why)
            assert daemon.process.poll() is not None, "siltd is left"
            assert not pathlib.Path(daemon.folder).exists()
            if error is FileNotFoundError:
                (build / "silt").symlink_to(lib.SILT)
        assert f"see {home}/data.log" in text, text
    finally:
        answers.ROOT = root


def test_answers_to_other_questions_are_not_taken_for_these():
    runs = lib.folder()
    options = argparse.Namespace(runs=runs, forms=[])

    def put(memory, name, *ids):
        path = questions.run_path(options, (memory,), name)
        path.write_text("".join(json.dumps({"document": f"qa, {i} tokens ago"}) + "\n"
                                for i in ids))

    def refused(text):
        try:
            return text in f"got {questions.read(options)}"
        except SystemExit as error:
            return text in str(error)

    for memory in ("ring", "none"):
        for name in questions.WHICH:
            put(memory, name, 1000, 2000)
    assert sorted(questions.read(options)) == ["none", "ring"]
    put("ring", "passage", 1000)
    assert refused("not the questions of the others")
    for name in questions.WHICH:
        put("ring", name, 1000, 3000)
    assert refused("not the questions of the others")


def test_tasks_are_asked_as_siltd_asks():
    """tests/eval/tasks.py: what stands where, what it counts."""
    question = "Text: I lost a card\nIntent:"
    text = "talk\n\n" + "\n\n".join(f"Text: {words}\nIntent: {label}" for words, label in (
        ("my card is lost", "lost"), ("the rate of the yen today", "rate"), ("top up", "top up"),
        ("a new card", "new"), ("rates", "rate"))) + "\n\nIntent:\n\nText: not whole"
    found = tasks.entries([text], question, most=4)
    assert len(found) == 4
    assert [part.split("Intent: ")[1] for part in found[-2:]] == ["new", "lost"]
    assert tasks.entries([text], "I lost a card") == []
    words = forms.Vocabulary(Trial().home / "tiny.gguf")
    item = {"asked": [f"\n\n{question}"] * 2, "choices": [" lost\n", " new\n"], "right": [0, 1],
            "id": "d0", "examples": 4, "tokens": [words.bytes.index(b"x")] * tasks.CHUNK * 17}
    listed = "".join(part + "\n\n" for part in found)
    hits = {"entries": listed, "all": [9, 1], "cold": [1, 0], "excerpt": "", "about": False}
    assert tasks.put(item, [hits], "auto", 0, None) == {
        "question": f"\n\n{listed}{question}", "raw": True, "choices": item["choices"],
        "recall": [1]}
    bare = tasks.put(item, [dict(hits, entries="")], "auto", 0, words)
    assert bare == {"question": question, "raw": False, "choices": ["lost\n", "new\n"],
                    "recall": [1], "before": "x" * forms.FORMS[forms.SHIPPED].window}
    assert tasks.put(item, [hits], "raw segments", 0, None) == {
        "question": f"\n\n{question}", "raw": True, "choices": item["choices"], "recall": [0, 1]}
    assert "recall" not in tasks.put(item, [hits], "raw", 0, None)
    assert tasks.with_bare(["auto"]) == ["raw", "auto"]     # rows are counted beside it
    assert tasks.with_bare(["siltd, mark", "raw"]) == ["turn", "raw", "siltd, mark"]
    folder = lib.folder()
    lines = [{"losses": losses, "kv_rows": 520, "recalled": recalled, "tokens": tokens}
             for losses, recalled, tokens in (([1, 2], 0, 20), ([1, 2], 0, 22), ([1, 2], 1, 120),
                                              ([2, 1], 1, 122))]
    (folder / "tasks some ccm 1x.json").write_text(
        json.dumps({"forms": ["raw", "auto"]}) + "\n" +
        json.dumps({"document": "d0", "questions": lines}) + "\n")
    arguments = argparse.Namespace(runs=folder)
    told = tasks.read(arguments, "some", [item], "ccm", "1")
    assert told["raw", 4] == (1, 2, 520, 520) and told["auto", 4] == (2, 2, 636, 636)
    assert tasks.share(70, 50, 75) == "80 %" and tasks.share(70, 50, 45) == "-"


def test_questions_are_drawn_from_every_group():
    ids = [f"{source}, {1000 + 97 * i % 5000} tokens ago" for i in range(60)
           for source in ("qmsum", "qa")]
    few, more = questions.pick(ids, 5), questions.pick(ids, 10)
    assert set(few) < set(more) and len(few) == 5 * 8 and len(more) == 10 * 8
    assert questions.pick(ids, 0) == list(range(len(ids)))
    sizes = [len(places) for kind, name, places in questions.groups([ids[i] for i in few])
             if name != "all"]
    assert sizes == [5] * 8


def with_keys(data, keys):
    """A GGUF with more keys, strings or floats, and one that keeps what follows in place."""
    def words(value):
        return struct.pack("<Q", len(value)) + value.encode()

    added = b"".join(words(name) + (struct.pack("<I", 8) + words(value) if isinstance(value, str)
                                    else struct.pack("<If", 6, value)) for name, value in keys)
    added += words("pad") + struct.pack("<I", 8) + words("." * (-(len(added) + 23) % 32))
    count = struct.unpack_from("<Q", data, 16)[0] + len(keys) + 1
    return data[:16] + struct.pack("<Q", count) + added + data[24:]


def test_scaled_positions():
    """RoPE scaling that a model file asks for: done, or refused; it had been passed over."""
    trial = Trial()
    text, model = trial.write("one.jsonl", story(12, 400)), trial.home / "tiny.gguf"
    data, name = model.read_bytes(), "llama.rope.scaling."

    def said(*keys, code=0):
        model.write_bytes(with_keys(data, [(name + key, value) for key, value in keys]))
        out = trial.run(text, "full", code=code, adapter=False)
        return out if code else out[-1]["nll"]

    plain = said()
    near(said(("type", "none")), plain)
    near(said(("type", "linear"), ("factor", 1.0)), plain)
    assert abs(said(("type", "linear"), ("factor", 8.0)) - plain) > 1e-3
    assert "yarn" in said(("type", "yarn"), ("factor", 4.0), code=1)
    assert "factor" in said(("type", "linear"), code=1)


def test_quality_takes_any_kind():
    """tests/eval/quality.py on a folder of a user's own kinds, and on one without text."""
    trial = Trial()
    folder = trial.home / "texts"
    command = [lib.ROOT / "tests/eval/quality.py", folder, "--program", EVAL, "--tokens", 320,
               "--dmc", 4, "--quick", "--csv", trial.home / "rows.csv", "--", "--model",
               trial.home / "tiny.gguf", "--adapter", trial.home / "tiny-adapter.gguf"]

    def run():
        return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True,
                              check=False, timeout=300 * lib.SLOW)
    folder.mkdir()
    assert "has no text" in run().stderr
    trial.write("texts/mails.jsonl", story(13, 500), story(14, 500))
    done = run()
    assert done.returncode == 0, done.stderr
    rows = (trial.home / "rows.csv").read_text().splitlines()
    assert len(rows) == 2 and rows[1].startswith("mails,4,2,320,"), rows


def test_what_it_cannot_do_it_says():
    trial = Trial()
    text = trial.write("one.jsonl", story(10, 50))
    for args, word, code in (((text, "ccm-swap"), "second document", 1),
                             ((text, "full", "--context", "99999"), "--context", 1),
                             ((text, "window", "--kv-rows", 3), "--kv-rows", 1),
                             ((text, "full", "--block", 9000), "--block", 1),
                             ((text, "ccm", "--dmc", 3), "3", 1),
                             ((text, "ccm", "--ring", 9999), "--ring", 2),
                             ((text, "ccm", "--tokens", "many"), "many", 2),
                             ((text, "clever"), "clever", 2),
                             ((text, "ccm", "--device-weights", "int4"), "int4", 2),
                             ((trial.home / "absent.jsonl", "full"), "absent.jsonl", 1)):
        said = trial.run(*args, code=code)
        assert word in said, (args, said)
    assert "--adapter" in trial.run(text, "ccm", "--adapter", "none", code=1, adapter=False)
    bad = trial.home / "bad.jsonl"
    bad.write_text('{"text": "good"}\n{"words": "bad"}\n')
    assert "line 2" in trial.run(bad, "full", code=1)
    tiny = trial.write("tiny.jsonl", "a", story(11, 20))
    assert len(trial.run(tiny, "full")) == 2  # a single token has nothing to score
    help_text = subprocess.run([EVAL, "--help"], capture_output=True, check=True).stdout
    assert b"ccm-swap" in help_text and b"--block" in help_text


def test_without_a_gpu_it_says_so():
    if pathlib.Path("/dev/nvidia0").exists():
        return  # then it would run
    trial = Trial()
    text = trial.write("one.txt", story(1, 60))
    assert "--device cpu" in trial.run(text, "ccm", "--device", "cuda", code=1)
    daemon = subprocess.run([lib.BUILD / "siltd", "--device", "cuda", "--listen",
                             f"ipc://{trial.home}/sock", "--data", trial.home / "data",
                             "--model", trial.home / "tiny.gguf", "--adapter",
                             trial.home / "tiny-adapter.gguf"],
                            capture_output=True, check=False, timeout=60 * lib.SLOW)
    assert daemon.returncode == 1 and b"--device cpu" in daemon.stderr, daemon


if __name__ == "__main__":
    lib.main(globals())
