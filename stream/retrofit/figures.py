"""Tables and plots of what evaluate.py measured.

    python3 figures.py --figures FOLDER --model BASE.gguf --results ../../tests/eval/results

FOLDER holds evaluate.py's JSON files, of any parts and kinds.  Markdown tables go to standard
output; pytorch.csv, foreign.csv, evict.csv, answers.csv and the plots to the results folder.
"""
import argparse
import csv
import glob
import json
import os

import answers
import data
import plot

KINDS = ("dialogue", "meeting", "log", "mixed", "book")
GROUPS = {"passages": ("qa_t0_selfinstruct", "qa_covid_articles", "qa_cosmos"),
          "meetings": ("qmsum",)}


def added(out, found):
    """found's figures into out; those of a kind may come from several processes, by ratio."""
    for key, value in found.items():
        if isinstance(value, dict):
            added(out.setdefault(key, {}), value)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            have = out.setdefault(key, [])
            if [item["text"] for item in have] == [item["text"] for item in value]:
                for one, other in zip(have, value):     # more memories' answers to the same
                    added(one, other)
            else:
                have.extend(value)
        else:
            out[key] = value


def merge(folder):
    """All files as one: kinds and ratios come from different processes, of one adapter."""
    out, made = {}, {}
    for path in sorted(glob.glob(os.path.join(folder, "*.json"))):
        with open(path) as file:
            found = json.load(file)
        made[json.dumps(found.pop("made", None), sort_keys=True)] = path
        added(out, found)
    if len(made) > 1:
        raise SystemExit("figures of different adapters or models: %s" % ", ".join(made.values()))
    if not out:
        raise SystemExit("%s has no figures" % folder)
    return out


def table(head, rows):
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join("" if cell is None else "%.3f" % cell if isinstance(cell, float)
                                else str(cell) for cell in row) + " |")
    print()


def percent(part, whole):
    return "-" if abs(whole) < 1e-4 else "%.0f %%" % (100 * part / whole)


def ratios_of(entry):
    return sorted(int(name.split("x")[0]) for name in entry if name.endswith("x ccm"))


def print_grid(grid):
    kinds = [kind for kind in KINDS if kind in grid]
    rows = [["full, newest 8,192"] + [grid[kind]["full"]["nll"] for kind in kinds]]
    for ratio in ratios_of(grid[kinds[0]]):
        for policy in ("ccm", "window", "window+lora", "swap", "foreign", "none"):
            name = "%dx %s" % (ratio, policy)
            cells = [grid[kind].get(name, {}).get("nll") for kind in kinds]
            if any(cells):
                rows.append([name] + cells)
    table(["nats a token"] + kinds, rows)
    rows = []
    for ratio in ratios_of(grid[kinds[0]]):
        own = [grid[kind]["%dx ccm" % ratio] for kind in kinds]
        name = "%dx" % ratio
        rows.append([name + " rows"] + ["%.0f" % entry["rows"] for entry in own])
        rows.append([name + " realised"] + ["%.2f" % entry["ratio"] for entry in own])
        rows.append([name + " − full"] + ["%+.3f" % (entry["nll"] - grid[kind]["full"]["nll"])
                                          for kind, entry in zip(kinds, own)])
        if ratio > 1:
            rows.append([name + " − 1x"] + ["%+.3f" % (entry["nll"] - grid[kind]["1x ccm"]["nll"])
                                            for kind, entry in zip(kinds, own)])
        for lender, title in (("swap", " content share"), ("foreign", " content share, foreign")):
            cells = []
            for kind, entry in zip(kinds, own):
                other, window = grid[kind].get(name + " " + lender), grid[kind][name + " window"]
                cells.append("" if not other else percent(other["nll"] - entry["nll"],
                                                          window["nll"] - grid[kind]["full"]["nll"]))
            if any(cells):
                rows.append([name + title] + cells)
    table([""] + kinds, rows)


def print_places(grid, runs=("1x ccm", "2x ccm", "4x ccm", "8x ccm", "1x window")):
    """Where the loss is lost: by place in the chunk, and by what a token repeats."""
    kinds = [kind for kind in KINDS if kind in grid]
    rows = []
    for kind in kinds:
        full = grid[kind]["full"]["places"]
        for run in runs:
            if run in grid[kind]:
                rows.append([kind, run] + ["%+.3f" % (a - b) for a, b in
                                           zip(grid[kind][run]["places"], full)])
    size = 256 // len(full)
    table(["run − full", "tokens of the chunk"] + ["%d-%d" % (i * size, (i + 1) * size - 1)
                                                   for i in range(len(full))], rows)
    rows = []
    for kind in kinds:
        for group, entry in grid[kind]["repetition"].items():
            if entry.get("full") is not None:
                rows.append([kind, group, "%.0f %%" % (100 * entry["share"]), entry["full"]]
                            + ["%+.3f" % (entry[run] - entry["full"]) if run in entry else ""
                               for run in runs + ("1x swap",)])
    table(["kind", "pair last seen", "tokens", "full"] + list(runs) + ["1x swap"], rows)


def print_rings(rings):
    kinds = [kind for kind in KINDS if kind in rings]
    lengths = sorted({int(name.split()[0]) for kind in kinds for name in rings[kind]})
    rows = []
    for length in lengths:
        for policy, name in (("ccm", ""), ("no-summary", ", no summary"),
                             ("other-summary", ", another stream's summary")):
            rows.append(["ring %d%s" % (length, name)]
                        + [rings[kind]["%d %s" % (length, policy)]["nll"] for kind in kinds])
    table(["1x"] + kinds, rows)


def print_drift(drift):
    rows = [[name, entry["early"], entry["late"], "%+.4f" % entry["difference"]]
            for name, entry in drift.items() if isinstance(entry, dict)]
    print("%d tokens; the text from %d on, at its place and at a stream's start\n"
          % (drift["tokens"], drift["from"]))
    table(["", "at the start", "late", "late − start"], rows)


def print_evict(evict, path):
    lines, ratios = [], sorted(name for name in evict if name.endswith("x"))
    kinds = [kind for kind in KINDS if kind in evict[ratios[0]]["tova"]]
    for ratio in ratios:
        for policy in ("ccm", "window", "tova", "h2o"):
            if policy in evict[ratio]:
                lines.append([ratio, policy, "%.0f" % evict[ratio]["rows"]]
                             + [evict[ratio][policy].get(kind) for kind in kinds])
    table(["ratio", "policy", "rows"] + kinds, lines)
    with open(os.path.join(path, "evict.csv"), "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["dmc", "policy", "rows"] + kinds)
        writer.writerows([line[0][:-1]] + line[1:] for line in lines)


def print_answers(records, tokenizer):
    for group, sources in GROUPS.items():
        mine = [record for record in records if record["source"] in sources]
        if not mine:
            continue
        keys, found = list(mine[0]["loss"]), {}
        for key in keys:
            pairs = [answers.match(tokenizer.decode(record["said"][key]), record["text"])
                     for record in mine]
            found[key] = [sum(record["loss"][key] for record in mine) / len(mine)] \
                + [sum(pair[i] for pair in pairs) / len(mine) for i in (0, 1)]
        best, worst = found.get("full passage"), found.get("full none")     # not with --no-full
        rows = []
        for key in keys:
            loss, exact, f1 = found[key]
            rows.append([key, loss, "%.1f" % (100 * exact), "%.1f" % (100 * f1)]
                        + ([percent(value - low, high - low) for value, low, high in
                            zip(found[key], worst or (), best or ())] or [""] * 3))
        print("%s, %d questions\n" % (group, len(mine)))
        table(["", "loss", "exact %", "F1 %", "loss recovered", "exact recovered",
               "F1 recovered"], rows)


def print_tasks(tasks):
    for name, found in tasks.items():
        memories = []
        for key in found:
            if key.split()[0] not in memories:
                memories.append(key.split()[0])
        shots = sorted({int(key.split()[1]) for key in found})
        none = found.get("full 0", {}).get("accuracy")              # not with --no-full
        rows = []
        for memory in memories:
            last = found["%s %d" % (memory, shots[-1])]
            row = [memory, "%.0f" % last["rows"]]
            for count in shots:
                accuracy = found["%s %d" % (memory, count)]["accuracy"]
                full = found.get("full %d" % count, {}).get("accuracy")
                # Where examples do not help in full context there is nothing to recover.
                useful = memory != "full" and count and none is not None and full - none > 0.05
                row.append("%.1f" % (100 * accuracy) + (
                    " (%s)" % percent(accuracy - none, full - none) if useful else ""))
            rows.append(row)
        print("%s, %d questions, 4 labels\n" % (name, last["asked"]))
        table(["memory", "rows"] + ["%d examples" % count for count in shots], rows)


def write_grid(grid, path):
    """pytorch.csv, in the columns of tests/eval/quality.py."""
    with open(os.path.join(path, "pytorch.csv"), "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["text", "dmc", "streams", "tokens", "full", "window", "ccm", "swap",
                         "none", "rows", "ratio"])
        for kind in sorted(grid, key=lambda kind: (kind.startswith("quick"), kind)):
            for ratio in ratios_of(grid[kind]):
                entry, own = grid[kind], grid[kind]["%dx ccm" % ratio]
                writer.writerow([kind, ratio] + entry["streams"] + [entry["full"]["nll"]] + [
                    entry.get("%dx %s" % (ratio, name), {}).get("nll")
                    for name in ("window", "ccm", "swap", "none")] + [own["rows"], own["ratio"]])


def write_foreign(grid, path):
    """foreign.csv: what memory of quite other documents costs, of what full has before window."""
    lines = []
    for kind in (kind for kind in KINDS if kind in grid):
        for ratio in ratios_of(grid[kind]):
            full, own, other, window = (grid[kind].get(name, {}) for name in (
                "full", "%dx ccm" % ratio, "%dx foreign" % ratio, "%dx window" % ratio))
            if other and window:
                lost = window["nll"] - full["nll"]
                share = "%.2f" % ((other["nll"] - own["nll"]) / lost) if abs(lost) > 1e-4 else ""
                lines.append([kind, ratio, full["nll"], window["nll"], own["nll"], other["nll"],
                              own["rows"], own["ratio"], share])
    if lines:
        with open(os.path.join(path, "foreign.csv"), "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["text", "dmc", "full", "window", "ccm", "foreign", "rows", "ratio",
                             "share"])
            writer.writerows(lines)


def write_answers(records, path):
    """answers.csv: of all questions, loss and its gain by a passage, for every memory."""
    memories = []
    for key in records[0]["loss"]:
        if key.split()[0] not in memories:
            memories.append(key.split()[0])
    with open(os.path.join(path, "answers.csv"), "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["questions", "of them", "memory", "loss without the passage", "with it",
                         "gain", "standard error"])
        for group, sources in GROUPS.items():
            mine = [record["loss"] for record in records if record["source"] in sources]
            for memory in memories if len(mine) > 1 else ():
                pairs = [(loss[memory + " none"], loss[memory + " passage"]) for loss in mine]
                gains = [none - passage for none, passage in pairs]
                mean = sum(gains) / len(gains)
                error = (sum((gain - mean) ** 2 for gain in gains)
                         / (len(gains) - 1) / len(gains)) ** 0.5
                writer.writerow([group, len(mine), memory] + [
                    "%.4f" % value for value in (*(sum(part) / len(part) for part in zip(*pairs)),
                                                 mean, error)])


def draw(found, path):
    grid = {kind: found["grid"][kind] for kind in KINDS if kind in found.get("grid", {})}
    if grid:
        plot.heads(os.path.join(path, "heads.svg"), grid)
        plot.rows(os.path.join(path, "rows.svg"), grid)
    if "rings" in found:
        plot.rings(os.path.join(path, "rings.svg"), found["rings"],
                   {kind: entry["full"]["nll"] for kind, entry in grid.items()})


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--figures", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--results", required=True)
    options = parser.parse_args()
    os.makedirs(options.results, exist_ok=True)
    found = merge(options.figures)
    if "grid" in found:
        print_grid(found["grid"])
        print_places(found["grid"])
        write_grid(found["grid"], options.results)
        write_foreign(found["grid"], options.results)
    if "evict" in found:
        print_evict(found["evict"], options.results)
    for part, show in (("rings", print_rings), ("drift", print_drift), ("tasks", print_tasks)):
        if part in found:
            show(found[part])
    if "answers" in found:
        print_answers(found["answers"], data.Tokenizer(options.model))
        write_answers(found["answers"], options.results)
    if "precision" in found:
        print("TF32 − fp32, one stream a kind: %s" % json.dumps(found["precision"]))
    draw(found, options.results)


if __name__ == "__main__":
    main()
