"""The adapter file: what FORMAT.md says, written and read with numpy alone."""
import numpy as np

import gguf

VERSION = 1
LORA_PARTS = ("q", "k", "v", "o")


class Adapter:
    """Constants and float32 arrays of one adapter; `tensors` has the names of FORMAT.md."""

    def __init__(self, tensors, base_fingerprint, chunk_tokens=256, comp_tokens=16,
                 ring_segments=14, sink_tokens=8, summary_alpha_min=0.0, dmc_ratios=(),
                 recall_layer=None, lexicon=()):
        self.tensors = tensors
        self.base_fingerprint = base_fingerprint
        self.chunk_tokens = chunk_tokens
        self.comp_tokens = comp_tokens
        self.ring_segments = ring_segments
        self.sink_tokens = sink_tokens
        self.summary_alpha_min = summary_alpha_min
        self.dmc_ratios = list(dmc_ratios)
        self.recall_layer = recall_layer
        self.lexicon = list(lexicon)

    def __getitem__(self, name):
        return self.tensors[name]

    def get(self, name):
        return self.tensors.get(name)


def write(path, adapter, description=""):
    """Every tensor goes out as f16 but for the small DMC tables, whose few bytes stay f32."""
    meta = [
        ("general.architecture", gguf.STRING, "llama"),
        ("general.type", gguf.STRING, "adapter"),
        ("general.name", gguf.STRING, description or "silt adapter"),
        ("adapter.type", gguf.STRING, "silt"),
        ("silt.version", gguf.U32, VERSION),
        ("silt.base_fingerprint", gguf.STRING, adapter.base_fingerprint),
        ("silt.chunk_tokens", gguf.U32, adapter.chunk_tokens),
        ("silt.comp_tokens", gguf.U32, adapter.comp_tokens),
        ("silt.ring_segments", gguf.U32, adapter.ring_segments),
        ("silt.sink_tokens", gguf.U32, adapter.sink_tokens),
        ("silt.summary_alpha_min", gguf.FLOAT32, adapter.summary_alpha_min),
        ("silt.dmc_ratios", (gguf.ARRAY, gguf.U32), adapter.dmc_ratios),
    ]
    if adapter.recall_layer is not None:
        meta.append(("silt.recall_layer", gguf.U32, adapter.recall_layer))
    if adapter.lexicon:
        meta.append(("silt.lexicon", (gguf.ARRAY, gguf.STRING), adapter.lexicon))
    tensors = []
    for name in sorted(adapter.tensors, key=_order):
        array = np.asarray(adapter.tensors[name], np.float32)
        if not np.isfinite(array).all():
            raise ValueError("%s holds a value that is not finite" % name)
        small = name.startswith("dmc.") or name.endswith(".bias") or array.ndim == 1
        if not small and np.abs(array).max() > 65504:
            raise ValueError("%s does not fit into f16" % name)
        tensors.append((name, array, gguf.F32 if small else gguf.F16))
    gguf.write(path, meta, tensors)


def read(path):
    """The adapter at `path`, with every tensor as the C engine reads it (f16 rounded)."""
    reader = gguf.Reader(path)
    meta = reader.meta
    if meta.get("general.type") != "adapter" or meta.get("adapter.type") != "silt":
        raise gguf.GGUFError("%s: not a silt adapter" % path)
    if meta["silt.version"] != VERSION:
        raise gguf.GGUFError("%s: adapter version %d" % (path, meta["silt.version"]))
    tensors = {name: reader.tensor(name) for name in reader.tensors}
    return Adapter(tensors, meta["silt.base_fingerprint"], meta["silt.chunk_tokens"],
                   meta["silt.comp_tokens"], meta["silt.ring_segments"], meta["silt.sink_tokens"],
                   meta["silt.summary_alpha_min"], meta["silt.dmc_ratios"],
                   meta.get("silt.recall_layer"), meta.get("silt.lexicon", ()))


def name_of(path):
    return gguf.Reader(path).meta["general.name"]


def _order(name):
    """Layers in number order, so that the file's order does not depend on a dict's."""
    parts = name.split(".")
    return (parts[0] == "blk", int(parts[1]) if parts[0] == "blk" else 0, name)
