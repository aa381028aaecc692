"""Golden vectors on disk: the little-endian layout that tests/golden/README.md describes."""
import struct

import numpy as np

MAGIC = b"SILTGOLD"
VERSION = 2     # 2: forks
TOP = 8


def best(logits):
    """The highest logits of every row: ids, values."""
    order = np.argsort(-logits, 1, kind="stable")[:, :TOP]
    values = np.take_along_axis(np.asarray(logits, np.float32), order, 1)
    return [order.astype("<i4").tobytes(), values.astype("<f4").tobytes()]


def write(path, *, base_fingerprint, ratio, ring, chunk_tokens, comp_tokens, layers, kv_heads,
          head_dim, tokens, nll, segment_layers, segments, top_positions, logits, decisions=None,
          decision_logits=None, fork_positions=(), question=(), fork_logits=None):
    """segments: [chunk][len(segment_layers)][kv_heads][comp][2][head_dim]; logits: full rows at
    top_positions; decisions and their logits: [token][layers*kv_heads], None at ratio 1;
    fork_logits: full rows after a question in forks at fork_positions, tokens of the stream."""
    tokens = np.asarray(tokens, "<i4")
    segments = np.asarray(segments, "<f2")
    head = MAGIC + struct.pack(
        "<13I", VERSION, len(tokens), ratio, ring, chunk_tokens, comp_tokens, layers, kv_heads,
        head_dim, len(segments), len(segment_layers), len(top_positions),
        int(decisions is not None)) + struct.pack("<I", TOP) + base_fingerprint.encode()
    parts = [head, tokens.tobytes(), np.asarray(nll, "<f4").tobytes(),
             np.asarray(segment_layers, "<u4").tobytes(), segments.tobytes(),
             np.asarray(top_positions, "<u4").tobytes()] + best(logits)
    if decisions is not None:
        packed = np.asarray(decisions, np.uint8).tobytes()
        parts += [packed + b"\0" * (-len(packed) % 4),
                  np.asarray(decision_logits, "<f4").tobytes()]
    parts += [struct.pack("<2I", len(fork_positions), len(question)),
              np.asarray(fork_positions, "<u4").tobytes(), np.asarray(question, "<i4").tobytes()]
    if len(fork_positions):
        parts += best(fork_logits)
    with open(path, "wb") as file:
        file.write(b"".join(parts))


def read(path):
    """The file as a dict of arrays: used by the check, and a reader to copy from."""
    with open(path, "rb") as file:
        data = file.read()
    if data[:8] != MAGIC:
        raise ValueError("%s: not a golden file" % path)
    if struct.unpack_from("<I", data, 8) != (VERSION,):
        raise ValueError("%s: of another version" % path)
    names = ("version", "tokens", "ratio", "ring", "chunk_tokens", "comp_tokens", "layers",
             "kv_heads", "head_dim", "chunks", "segment_layers", "top_positions", "has_decisions",
             "top")
    out = dict(zip(names, struct.unpack_from("<14I", data, 8)))
    out["base_fingerprint"] = data[64:80].decode()
    at = 80

    def take(kind, *shape):
        nonlocal at
        array = np.frombuffer(data, kind, int(np.prod(shape)), at).reshape(shape)
        at += array.nbytes
        return array

    count, tops = out["tokens"], out["top_positions"]
    columns = out["layers"] * out["kv_heads"]
    out["tokens"], out["nll"] = take("<i4", count), take("<f4", count)
    layer_count = out["segment_layers"]
    out["segment_layers"] = take("<u4", layer_count)
    out["segments"] = take("<f2", out["chunks"], layer_count, out["kv_heads"],
                           out["comp_tokens"], 2, out["head_dim"])
    out["top_positions"] = take("<u4", tops)
    out["top_ids"], out["top_logits"] = take("<i4", tops, out["top"]), take("<f4", tops, out["top"])
    if out["has_decisions"]:
        out["decisions"] = take("u1", count, columns)
        at += -at % 4
        out["decision_logits"] = take("<f4", count, columns)
    forks, asked = take("<u4", 2)
    out["fork_positions"], out["question"] = take("<u4", forks), take("<i4", asked)
    out["fork_ids"], out["fork_logits"] = take("<i4", forks, out["top"]), \
        take("<f4", forks, out["top"])
    if at != len(data):
        raise ValueError("%s: %d bytes too many" % (path, len(data) - at))
    return out
