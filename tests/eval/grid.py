#!/usr/bin/env python3
"""The full grid of `make quality`, by the C engine on a GPU.

    tests/eval/grid.py FOLDER [--runs FOLDER] [--seconds N] [-- options of silt-eval]

FOLDER holds development texts, KIND.jsonl[.zst], or what stream/retrofit/evalset.py has made of
them: four streams a kind, 24,576 tokens each, books 65,536, and one of 1,048,576.  Every policy at
every ratio, rings of several lengths with and without the summary, and the end of the long stream
beside the same text at a stream's start.  A run's JSON lines go to the runs folder, and what is
there already is not run again; tables and plots are made of all that is there.  Each run takes all
streams side by side.
"""
import argparse
import concurrent.futures
import csv
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "stream/retrofit"))
import plot  # noqa: E402

KINDS = ("dialogue", "meeting", "log", "mixed", "book")
RATIOS = (1, 2, 4, 8)
RINGS = (4, 8, 14)          # beside the adapter's; longer ones do not fit the trained context
RING_RATIOS = (1, 4)        # at which rings with and without their summary are compared
POLICIES = ("full", "window", "window+lora", "ccm", "ccm-swap", "ccm-foreign", "none")
MODEL = ROOT / "build/models/smollm2-135m-instruct-q4_1.gguf"
ADAPTER = ROOT / "stream/adapters/smollm2-135m-instruct.gguf"


def runs_of():
    """(name, options) of every run, what matters most first."""
    runs = [("full", ["--policy", "full"])]
    for some in (("ccm", "window"), ("ccm-foreign",), ("ccm-swap", "none")):
        runs += [(f"{policy} {ratio}x", ["--policy", policy, "--dmc", ratio])
                 for ratio in (1, 4, 2, 8) for policy in some]
    for ratio in RING_RATIOS:
        runs.append((f"no-summary {ratio}x", ["--policy", "no-summary", "--dmc", ratio]))
        for ring in RINGS:
            for policy in ("ccm", "no-summary"):
                runs.append((f"{policy} {ratio}x ring {ring}",
                             ["--policy", policy, "--dmc", ratio, "--ring", ring]))
    for ratio in (8, 1, 4, 2):
        runs.append((f"window+lora {ratio}x", ["--policy", "window+lora", "--dmc", ratio]))
    runs.append(("drift 1x", ["--policy", "ccm", "--dmc", 1]))
    return runs


def file_sum(path):
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()[:16]


def keep_settings(path, settings):
    """What a folder's figures are of, noted when it gets its first: others do not go on with it."""
    settings = json.loads(json.dumps(settings))
    if not path.exists():
        path.write_text(json.dumps(settings), encoding="utf-8")
    noted = json.loads(path.read_text(encoding="utf-8"))
    if noted != settings:
        other = [f"{name} {noted.get(name)}, not {settings.get(name)}"
                 for name in sorted({*noted, *settings})
                 if noted.get(name) != settings.get(name)]
        sys.exit(f"{path.parent} has figures of {'; '.join(other)}: name another folder")


def write_streams(path, named):
    with open(f"{path}.part", "w", encoding="utf-8") as file:
        for name, kind, tokens in named:
            file.write(json.dumps({"id": name, "kind": kind, "tokens": tokens.tolist()}) + "\n")
    os.replace(f"{path}.part", path)


def make_streams(folder, out, model):
    """streams.jsonl and long.jsonl of a folder, made once; of what it has too little text for a
    stream of is nothing in them."""
    if (out / "streams.jsonl").exists():
        return
    import numpy as np      # only here: evalset.py needs it too
    if not (folder / "dialogue.npy").exists():
        print("cutting streams: documents joined, tokenised", flush=True)
        subprocess.run([sys.executable, ROOT / "stream/retrofit/evalset.py", "--model", model,
                        "--text", folder, "--out", out / "evalset"], check=True)
        folder = out / "evalset"
    if (folder / "long.npy").exists():
        tokens = np.load(folder / "long.npy")
        write_streams(out / "long.jsonl", [("late", "long", tokens),
                                           ("early", "long", tokens[len(tokens) * 3 // 4:])])
    write_streams(out / "streams.jsonl", [
        (f"{kind} {i + 1}", kind, tokens) for kind in KINDS if (folder / f"{kind}.npy").exists()
        for i, tokens in enumerate(np.load(folder / f"{kind}.npy"))])


def begin(arguments, name, options):
    """One run; its lines, with how it was made behind them."""
    left = arguments.end - time.time()
    text = arguments.runs / ("long.jsonl" if name.startswith("drift") else "streams.jsonl")
    command = [arguments.program, "--text", text, "--json", *options,
               "--device", arguments.device, *arguments.more]
    if arguments.device == "cuda":
        memory = arguments.device_memory // (1 if name == "full" else 2)
        command += ["--threads", 2, "--device-memory", memory]
    command = [str(word) for word in command]
    begun = time.time()
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=left)
    except subprocess.TimeoutExpired:
        print(f"{name}: cut off", flush=True)
        return
    if done.returncode:
        print(f"{name}: {done.stderr.decode().strip()}", file=sys.stderr, flush=True)
        arguments.failed.append(name)
        return
    path = arguments.runs / f"{name}.json"
    with open(f"{path}.part", "w", encoding="utf-8") as file:
        file.write(done.stdout.decode())
        file.write(json.dumps({"machine": arguments.machine, "commit": arguments.commit,
                               "command": " ".join(command), "adapter": arguments.adapter,
                               "seconds": round(time.time() - begun, 1)}) + "\n")
    os.replace(f"{path}.part", path)
    arguments.done += 1
    total = json.loads(done.stdout.splitlines()[-1])
    print(f"{arguments.done:3} of {arguments.count}  {name:20} {total['nll']:.4f}  "
          f"{time.time() - begun:.0f} s", flush=True)


def run_all(arguments):
    wanted = [(name, options) for name, options in runs_of()
              if not (arguments.runs / f"{name}.json").exists()
              and ((arguments.runs / "long.jsonl").exists() or not name.startswith("drift"))
              and (not arguments.only or name in arguments.only.split(","))]
    arguments.count, arguments.done, arguments.failed = len(wanted), 0, []

    def one(item):
        if arguments.end - time.time() > arguments.least:
            begin(arguments, *item)
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(one, wanted))


def nll_of(lines):
    """Mean of a token by kind, of its streams, which are of one length; and rows, ratio."""
    out = {}
    for line in lines:
        entry = out.setdefault(line.get("kind", ""), [0, 0.0, 0.0, 0.0, 0])
        entry[0] += 1
        entry[1] += line["nll"]
        entry[2] += line["kv_rows_mean"] or 0.0
        entry[3] += 1 / line["dmc_ratio"]
        entry[4] = line["tokens"]
    return {kind: {"streams": n, "tokens": tokens, "nll": nll / n, "rows": rows / n,
                   "ratio": n / inverse} for kind, (n, nll, rows, inverse, tokens) in out.items()}


def read_runs(folder):
    """{name: {kind: figures}}, the long stream's lines, and how they were made."""
    found, drift, made = {}, {}, {}
    for name, _ in runs_of():
        path = folder / f"{name}.json"
        if not path.exists():
            continue
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for key in ("machine", "commit"):
            made.setdefault(key, []).append(lines[-1][key])
        made.update(command=lines[-1]["command"], adapter=lines[-1]["adapter"])
        lines = [line for line in lines if "document" in line]
        if name.startswith("drift"):
            drift = {line["document"]: line for line in lines}
        else:
            found[name] = nll_of(lines)
    for key in ("machine", "commit"):
        made[key] = ", ".join(dict.fromkeys(made.get(key, ())))
    return found, drift, made


def write_csv(path, made, head, rows):
    """Nothing of a machine's places: the programs are the repository's."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        file.write(f"# {made['machine']}, commit {made['commit']}, tests/eval/grid.py FOLDER "
                   f"(silt-eval --device {made['command'].split('--device ')[1].split()[0]}, "
                   f"adapter {made['adapter']}); nats a token, four streams a kind\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)


def share(part, whole):
    return "-" if abs(whole) < 1e-4 else f"{100 * part / whole:.0f} %"


def print_table(head, rows):
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(f"{cell:.3f}" if isinstance(cell, float) else str(cell)
                                for cell in row) + " |")
    print(flush=True)


def of_kinds(form, *entries):
    """A cell of each kind, made of its figures in every entry; empty where one has none of it."""
    return [form(*(entry[kind] for entry in entries)) if all(kind in entry for entry in entries)
            else "" for kind in KINDS]


def print_grid(found):
    def cells(name):
        return [found.get(name, {}).get(kind, {}).get("nll", "") for kind in KINDS]
    rows = [["full, newest 8,192", *cells("full")]]
    for ratio in RATIOS:
        rows += [[f"{ratio}x {policy}", *cells(f"{policy} {ratio}x")]
                 for policy in POLICIES[1:] if f"{policy} {ratio}x" in found]
    print_table(["nats a token", *KINDS], rows)
    rows, full = [], found.get("full", {})
    for ratio in RATIOS:
        own, window = found.get(f"ccm {ratio}x", {}), found.get(f"window {ratio}x", {})
        if not own or not full:
            continue
        rows.append([f"{ratio}x rows", *of_kinds(lambda o: f"{o['rows']:.0f}", own)])
        rows.append([f"{ratio}x realised", *of_kinds(lambda o: f"{o['ratio']:.2f}", own)])
        rows.append([f"{ratio}x − full",
                     *of_kinds(lambda o, f: f"{o['nll'] - f['nll']:+.4f}", own, full)])
        for lender in ("ccm-swap", "ccm-foreign"):
            other = found.get(f"{lender} {ratio}x")
            if other and window:
                rows.append([f"{ratio}x content share, {lender}",
                             *of_kinds(lambda r, o, w, f: share(r["nll"] - o["nll"],
                                                                w["nll"] - f["nll"]),
                                       other, own, window, full)])
    print_table(["", *KINDS], rows)


README_ROWS = (("full attention, newest 8,192 tokens", "full"), ("**silt, 1x**", "ccm 1x"),
               ("sliding window of as many rows", "window 1x"),
               ("silt with another stream's memory", "ccm-swap 1x"),
               ("silt with other documents' memory", "ccm-foreign 1x"), ("silt, 2x", "ccm 2x"),
               ("silt, 4x", "ccm 4x"), ("silt, 8x", "ccm 8x"),
               ("window, the LoRA of 2x to 8x on it", "window+lora 8x"))


def print_readme(found):
    """The table of README.md, section What it remembers; rows are dialogue's."""
    rows = []
    for title, name in README_ROWS:
        entry = found.get(name)
        if not entry or any(kind not in entry for kind in KINDS):
            continue
        mark = "**" if "**" in title else ""
        held = found.get(f"ccm {name.split()[1]}", entry) if name != "full" else {}
        rows.append([title, f"{held['dialogue']['rows']:.0f}" if held else "8,192",
                     *(f"{mark}{entry[kind]['nll']:.3f}{mark}" for kind in KINDS)])
    print("as the README has it:\n")
    print_table(["", "KV rows", "dialogue", "meeting", "log", "mixed logs", "book"], rows)


def rings_of(found, of_ratio):
    """{kind: {"4 ccm": {nll}}} of a ratio, with the adapter's own length."""
    out = {}
    for name, entry in found.items():
        policy, ratio, *more = name.split() + ([""] if name == "full" else [])
        if ratio == f"{of_ratio}x" and policy in ("ccm", "no-summary"):
            for kind, figures in entry.items():
                out.setdefault(kind, {})[f"{more[1] if more else 15} {policy}"] = figures
    return out


def write_figures(arguments):
    found, drift, made = read_runs(arguments.runs)
    if not found and not drift:
        return False
    results = arguments.results
    results.mkdir(parents=True, exist_ok=True)
    rows = []
    for kind in KINDS:
        for ratio in RATIOS:
            own = found.get(f"ccm {ratio}x", {}).get(kind)
            if own:
                rows.append([kind, ratio, own["streams"], own["tokens"]] + [
                    f"{entry[kind]['nll']:.4f}" if entry else "" for entry in (
                        found.get(policy if policy == "full" else f"{policy} {ratio}x")
                        for policy in POLICIES)] + [f"{own['rows']:.1f}", f"{own['ratio']:.3f}"])
    names = [policy.replace("ccm-", "") for policy in POLICIES]
    write_csv(results / "engine.csv", made,
              ["text", "dmc", "streams", "tokens", *names, "rows", "ratio"], rows)
    print_grid(found)
    print_readme(found)
    write_rings(results, found, made)
    if drift:
        late, early = drift["late"]["nll_quarters"][3], drift["early"]["nll"]
        write_csv(results / "drift-engine.csv", made,
                  ["ratio", "tokens", "last quarter", "the same text at a stream's start"],
                  [[1, drift["late"]["tokens"], f"{late:.4f}", f"{early:.4f}"]])
        print(f"drift over {drift['late']['tokens']} tokens, 1x: the last quarter {late:.4f}, "
              f"at a stream's start {early:.4f}, {late - early:+.4f}\n")
    draw(results, found)
    return True


def write_rings(results, found, made):
    rows = []
    for ratio in RING_RATIOS:
        rings = rings_of(found, ratio)
        lengths = sorted({int(name.split()[0]) for entry in rings.values() for name in entry})
        if len(lengths) > 1:
            rows += [[f"{ratio}x ring {length}{words}",
                      *(rings.get(kind, {}).get(f"{length} {policy}", {}).get("nll", "")
                        for kind in KINDS)]
                     for length in lengths
                     for policy, words in (("ccm", ""), ("no-summary", ", no summary"))]
    if rows:
        print_table(["", *KINDS], rows)
        write_csv(results / "rings.csv", made, ["ring", *KINDS], [
            [row[0], *(f"{cell:.5f}" if cell else "" for cell in row[1:])] for row in rows])


def draw(results, found):
    grid, rings = {}, rings_of(found, 1)
    for kind in KINDS:
        entry = {name: figures[kind] for name, figures in found.items() if kind in figures}
        entry.update({f"{name.split()[1]} {name.split()[0]}": figures for name, figures in
                      entry.items() if name.endswith("x")})
        if all(f"{ratio}x {policy}" in entry for ratio in RATIOS for policy in ("ccm", "window")):
            grid[kind] = entry
    if grid:
        plot.rows(results / "rows.svg", grid)
    if rings and all(len(entry) > 2 for entry in rings.values()):
        plot.rings(results / "rings.svg", rings,
                   {kind: figures["nll"] for kind, figures in found.get("full", {}).items()})


def machine_name():
    try:
        done = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
                              capture_output=True, check=False)
        return done.stdout.decode().splitlines()[0] if not done.returncode else "CPU"
    except (OSError, IndexError):
        return "CPU"


def commit_name():
    done = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"],
                          capture_output=True, check=False)
    return done.stdout.decode().strip() or os.environ.get("COMMIT", "unknown")


def take(words, name, default):
    """The file that an option names, which goes from words."""
    if name not in words:
        return default
    at = words.index(name)
    path = pathlib.Path(words[at + 1])
    del words[at:at + 2]
    return path


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--runs", type=pathlib.Path, default=ROOT / "build/quality/grid")
    parser.add_argument("--results", type=pathlib.Path, default=ROOT / "tests/eval/results")
    parser.add_argument("--program", type=pathlib.Path, default=ROOT / "build/silt-eval")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--device-memory", type=int, default=14000,
                        help="MB; runs other than the first get half")
    parser.add_argument("--jobs", type=int, default=4, help="runs side by side")
    parser.add_argument("--seconds", type=float, default=3600, help="none is begun or kept beyond")
    parser.add_argument("--least", type=float, default=8, help="seconds left to begin one with")
    parser.add_argument("--only", default="", help="these runs alone, by name")
    parser.add_argument("--model", type=pathlib.Path, default=MODEL)
    words = sys.argv[1:] if words is None else words
    cut = words.index("--") if "--" in words else len(words)
    arguments = parser.parse_args(words[:cut])
    arguments.more = words[cut + 1:]
    rest = list(arguments.more)
    adapter, model = take(rest, "--adapter", ADAPTER), take(rest, "--model", arguments.model)
    arguments.adapter = "the shipped one" if adapter == ADAPTER else adapter.name
    arguments.end = time.time() + arguments.seconds
    arguments.machine, arguments.commit = machine_name(), commit_name()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    keep_settings(arguments.runs / "settings", {
        "text": str(arguments.folder.resolve()), "model": file_sum(model),
        "adapter": file_sum(adapter), "device": arguments.device, "options": rest})
    make_streams(arguments.folder, arguments.runs, arguments.model)
    run_all(arguments)
    written = write_figures(arguments)
    if arguments.failed:
        print(f"failed, and not among the figures: {', '.join(arguments.failed)}", file=sys.stderr)
    return 0 if written and not arguments.failed else 1


if __name__ == "__main__":
    sys.exit(main())
