#!/usr/bin/env python3
"""What compression costs and what it is worth, on any text: `make quality`.

    tests/eval/quality.py [FILE.jsonl ...] [--dmc 1,4] [--tokens N] [--documents N] [--json OUT]

Without a FILE, text of this machine is used: licences, manuals and logs.  For each file and DMC
ratio silt-eval runs five policies over the same documents, and the table says

    full      the model with its whole trained context: the best there is
    window    the newest rows, as many as ccm holds: what the same memory gives without silt
    ccm       silt
    swap      silt with another document's ring and summary: learned prompt, no content
    none      silt with ring and summary hidden
    closed    how much of the gap from window to full ccm closes
    content   how much of what ring and summary give is lost with another document's
"""
import argparse
import gzip
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build/quality"
DOCUMENT_BYTES = 120_000

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


def evaluate(arguments, path, policy, dmc):
    """The total of one run of silt-eval, None where it cannot do it."""
    command = [arguments.program, "--text", path, "--policy", policy, "--json",
               "--documents", arguments.documents]
    command += ["--tokens", arguments.tokens] + (["--dmc", dmc] if dmc else [])
    command += arguments.more
    done = subprocess.run(list(map(str, command)), capture_output=True, check=False)
    if done.returncode:
        print(f"{path}: {policy}: {done.stderr.decode().strip()}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def share(part, whole):
    return f"{100 * part / whole:5.0f} %" if abs(whole) > 1e-4 else "      -"


def table(arguments, path, results):
    full = evaluate(arguments, path, "full", 0)
    for dmc in arguments.dmc:
        rows = {policy: evaluate(arguments, path, policy, dmc)
                for policy in ("window", "ccm", "ccm-swap", "none")}
        if not full or not all(rows.values()):
            return False
        nll = {policy: row["nll"] for policy, row in rows.items()}
        gap, given = nll["window"] - full["nll"], nll["none"] - nll["ccm"]
        print(f"{path.name.split('.')[0]:12} {dmc:3} {full['tokens']:8} {full['nll']:7.4f} "
              f"{nll['window']:7.4f} {nll['ccm']:7.4f} {nll['ccm-swap']:7.4f} {nll['none']:7.4f} "
              f"{share(nll['window'] - nll['ccm'], gap)} "
              f"{share(nll['ccm-swap'] - nll['ccm'], given)} "
              f"{rows['ccm']['kv_rows_mean']:7.0f} {rows['ccm']['kv_bytes_peak'] / 1e6:6.1f} "
              f"{full['kv_bytes_peak'] / 1e6:7.1f} {rows['ccm']['dmc_ratio']:5.2f}", flush=True)
        results.append({"text": path.name, "dmc": dmc, "full": full, **rows})
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("text", nargs="*", type=pathlib.Path)
    parser.add_argument("--dmc", default="1,4", type=lambda s: [int(part) for part in s.split(",")])
    parser.add_argument("--tokens", type=int, default=8192, help="of each document")
    parser.add_argument("--documents", type=int, default=2, help="of each file")
    parser.add_argument("--program", type=pathlib.Path, default=ROOT / "build/silt-eval")
    parser.add_argument("--json", type=pathlib.Path, default=FOLDER / "results.json")
    parser.epilog = "After -- come options for silt-eval, such as --model and --adapter."
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    arguments = parser.parse_args(sys.argv[1:cut])
    arguments.more = sys.argv[cut + 1:]
    texts = arguments.text or [machine_text(kind, arguments.documents) for kind in PLACES]
    print(f"{'text':12} {'dmc':>3} {'tokens':>8} {'full':>7} {'window':>7} {'ccm':>7} {'swap':>7} "
          f"{'none':>7} {'closed':>7} {'content':>7} {'rows':>7} {'MB':>6} {'full MB':>7} "
          f"{'ratio':>5}")
    results = []
    good = all([table(arguments, path, results) for path in texts if path])
    FOLDER.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0 if good and results else 1


if __name__ == "__main__":
    sys.exit(main())
