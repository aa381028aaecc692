#!/usr/bin/env python3
"""What compression costs and what it is worth, on any text: `make quality`.

    tests/eval/quality.py [FOLDER | FILE.jsonl ...] [--dmc 1,4] [--tokens N] [--streams N]

FOLDER holds KIND.jsonl[.zst] or KIND.txt; without any, text of this machine is used: licences,
manuals, logs.
Where there is a GPU and FOLDER holds all four kinds, the full grid runs on it instead, and what is
asked behind passages: tests/eval/grid.py, questions.py, tasks.py.  --quick: not these.
A file's documents are joined and cut into streams.  For each file and DMC ratio silt-eval, the C
engine, runs five policies over the same streams, and the table says

    full      the model with its whole trained context: the best there is
    window    the newest rows, as many as ccm holds: what the same memory gives without silt
    ccm       silt; at 1x DMC is off
    swap      silt with another stream's ring and summary: learned prompt, no content
    none      silt with ring and summary hidden
    closed    how much of the gap from window to full ccm closes
    content   (swap - ccm) / (window - full): how much of that gap is content of the memory

Behind it come the figures of the repository (tests/eval/results/): the engine's full grid, and that
of the training code, marked PyTorch.
"""
import argparse
import concurrent.futures
import csv
import gzip
import json
import pathlib
import shutil
import subprocess
import sys
import time

import grid
import questions
import tasks

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build/quality"
RESULTS = ROOT / "tests/eval/results"
DOCUMENT_BYTES = 120_000
KINDS = ("dialogue", "meeting", "log", "book")
POLICIES = ("window", "ccm", "ccm-swap", "none")
POLICY_NAMES = ("full", "window", "ccm", "swap", "none")
COLUMNS = ("text", "dmc", "streams", "tokens", *POLICY_NAMES, "rows", "ratio")

# Places of text that most Debian machines have, by kind.
PLACES = {
    "licences": ["/usr/share/common-licenses/*", "/usr/share/doc/*/copyright"],
    "manuals": ["/usr/share/doc/*/README*", "/usr/share/doc/*/NEWS*",
                "/usr/share/doc/*/changelog.gz"],
    "logs": ["/var/log/*.log", "/var/log/apt/*.log"],
}


def read(path):
    try:
        raw = gzip.open(path).read() if path.suffix == ".gz" else path.read_bytes()
    except OSError:
        return ""
    return raw.decode("utf-8", "replace")


def machine_text(kind, documents):
    """JSON lines of this machine's text of a kind, each document of one sort, none read twice."""
    out, part, seen = [], [], set()
    for pattern in PLACES[kind]:
        for path in sorted(pathlib.Path("/").glob(pattern[1:])):
            text = read(path) if path.is_file() else ""
            if len(text) < 400 or hash(text) in seen:
                continue
            seen.add(hash(text))
            part.append(text)
            if sum(map(len, part)) >= DOCUMENT_BYTES:
                out.append("\n\n".join(part)[:DOCUMENT_BYTES])
                part = []
            if len(out) >= documents:
                break
    if part and len(out) < documents:
        out.append("\n\n".join(part))
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{kind}.jsonl"
    path.write_text("".join(json.dumps({"id": f"{kind} {i}", "kind": kind, "text": text}) + "\n"
                            for i, text in enumerate(out)))
    return path if len(out) > 1 else None


def folder_texts(folder):
    """The files of a folder's kinds."""
    found = []
    for kind in KINDS:
        found += [folder / (kind + end) for end in (".jsonl", ".jsonl.zst")
                  if (folder / (kind + end)).exists()][:1]
    return found


def texts_of(path):
    """The files of a folder, its own kinds where it has none of these, or the file itself."""
    found = [path]
    if path.is_dir():
        found = folder_texts(path) or sorted(file for end in ("*.jsonl", "*.jsonl.zst", "*.txt")
                                             for file in path.glob(end))
    if not found or not found[0].exists():
        sys.exit(f"{path} has no text: KIND.jsonl[.zst] or KIND.txt")
    return found


def evaluate(arguments, path, policy, dmc):
    """The total of one run of silt-eval, None where it cannot do it."""
    command = [arguments.program, "--text", path, "--policy", policy, "--json", "--join",
               "--tokens", arguments.tokens, "--streams", arguments.streams]
    command += (["--dmc", dmc] if dmc else []) + arguments.more
    done = subprocess.run(list(map(str, command)), capture_output=True, check=False)
    if done.returncode:
        print(f"{path}: {policy}: {done.stderr.decode().strip()}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def share(part, whole):
    return f"{100 * part / whole:5.0f} %" if abs(whole) > 1e-4 else "      -"


def print_head():
    print(f"{'text':14} {'dmc':>3} {'streams':>11} "
          + " ".join(f"{name:>7}" for name in POLICY_NAMES)
          + f" {'closed':>7} {'content':>7} {'rows':>6} {'ratio':>6}")


def print_row(row, mark=""):
    nll = {name: float(row[name] or "nan") for name in POLICY_NAMES}
    gap = nll["window"] - nll["full"]
    print(f"{row['text']:14} {row['dmc']:>3} {row['streams']:>3} x {int(row['tokens']):>5} "
          + " ".join(f"{value:7.4f}" for value in nll.values())
          + f" {share(nll['window'] - nll['ccm'], gap)} {share(nll['swap'] - nll['ccm'], gap)} "
          f"{float(row['rows']):6.0f} {float(row['ratio']):6.2f} {mark}", flush=True)


def start(pool, arguments, path):
    """All runs of one file, the longest first, as futures by policy and ratio."""
    runs = {("full", 0): pool.submit(evaluate, arguments, path, "full", 0)}
    for dmc in arguments.dmc:
        for policy in POLICIES:
            runs[policy, dmc] = pool.submit(evaluate, arguments, path, policy, dmc)
    return runs


def measure(arguments, path, started, rows):
    """The rows of one file; False where silt-eval could not."""
    full = started["full", 0].result()
    for dmc in arguments.dmc:
        runs = {policy: started[policy, dmc].result() for policy in POLICIES}
        if not full or not all(runs.values()):
            return False
        row = {"text": path.name.split(".")[0], "dmc": dmc, "tokens": arguments.tokens,
               "streams": full["tokens"] // arguments.tokens, "full": f"{full['nll']:.4f}",
               "rows": f"{runs['ccm']['kv_rows_mean']:.1f}",
               "ratio": f"{runs['ccm']['dmc_ratio']:.3f}"}
        row.update({policy.replace("ccm-", ""): f"{run['nll']:.4f}"
                    for policy, run in runs.items()})
        print_row(row)
        rows.append(row)
    return True


def print_recorded():
    for name, mark in (("engine", ""), ("pytorch", "PyTorch")):
        path = RESULTS / f"{name}.csv"
        if path.exists():
            print(f"\nrecorded in {path.relative_to(ROOT)}"
                  + (", development text; made by the training code on a GPU:" if mark else ":"))
            print_head()
            with open(path, newline="", encoding="utf-8") as file:
                for row in csv.DictReader(line for line in file if line[0] != "#"):
                    print_row(row, mark)


def gpu_there():
    return shutil.which("nvidia-smi") and not subprocess.run(
        ["nvidia-smi", "-L"], capture_output=True, check=False).returncode


def run_grid(arguments):
    """The full grid, the questions and the tasks."""
    more = ["--", *arguments.more] if arguments.more else []
    code = grid.main([str(arguments.text[0]), "--program", str(arguments.program), *more])
    made = FOLDER / "grid/evalset"
    made = made if made.exists() else arguments.text[0]
    rest = list(arguments.more)
    asked = [str(made), "--program", str(arguments.program),
             "--adapter", str(grid.take(rest, "--adapter", grid.ADAPTER)),
             "--model", str(grid.take(rest, "--model", grid.MODEL)), "--", *rest]
    for script, needs in ((questions, "questions-none.jsonl"), (tasks, "task_clinc150.jsonl")):
        if not code and (made / needs).exists():
            code = script.main(asked)
    return code


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("text", nargs="*", type=pathlib.Path)
    parser.add_argument("--dmc", default="1,4", type=lambda s: [int(part) for part in s.split(",")])
    parser.add_argument("--tokens", type=int, default=16384, help="of each stream")
    parser.add_argument("--streams", type=int, default=2, help="of each file")
    parser.add_argument("--jobs", type=int, default=1,
                        help="runs side by side; give each its share: -- --threads 2")
    parser.add_argument("--program", type=pathlib.Path, default=ROOT / "build/silt-eval")
    parser.add_argument("--csv", type=pathlib.Path, default=FOLDER / "engine.csv")
    parser.add_argument("--quick", action="store_true", help="the quick form on a GPU too")
    parser.epilog = "After -- come options for silt-eval, such as --model and --adapter."
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    arguments = parser.parse_args(sys.argv[1:cut])
    arguments.more = sys.argv[cut + 1:]
    first = arguments.text[0] if len(arguments.text) == 1 else ROOT
    whole = len(folder_texts(first)) == len(KINDS) or (first / "dialogue.npy").exists()
    if whole and not arguments.quick and gpu_there():
        return run_grid(arguments)
    texts = []
    for path in arguments.text:
        texts += texts_of(path)
    if not arguments.text:
        count = 2 + arguments.streams * arguments.tokens * 5 // DOCUMENT_BYTES
        texts = [path for path in (machine_text(kind, count) for kind in PLACES) if path]
    begun, rows = time.time(), []
    print_head()
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        started = [start(pool, arguments, path) for path in texts]
        good = all([measure(arguments, *text, rows) for text in zip(texts, started)])
    print(f"{time.time() - begun:.0f} s")
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(arguments.csv, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print_recorded()
    return 0 if good and rows else 1


if __name__ == "__main__":
    sys.exit(main())
