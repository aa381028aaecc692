"""Trained parameters <-> the adapter file.

    python3 export.py --model BASE.gguf --checkpoint RUN --out ADAPTER.gguf
"""
import argparse

import numpy as np
import torch

import model as model_file
import silt_adapter


def to_tensors(parameters, quotas):
    """AdapterParameters -> the named arrays of FORMAT.md."""
    out = {"comp.embd": parameters.comp_embd}
    layers = parameters.decide.shape[0]
    for layer in range(layers):
        for kind in ("comp", "dmc"):
            thirds = getattr(parameters, kind + "_qkv_a")[layer].chunk(3, 0)
            for part, a in zip("qkv", thirds):
                name = "blk.%d.%s_%s" % (layer, kind, part)
                out[name + ".a"] = a
                out[name + ".b"] = getattr(parameters, "%s_%s_b" % (kind, part))[layer]
            name = "blk.%d.%s_o" % (layer, kind)
            out[name + ".a"] = getattr(parameters, kind + "_o_a")[layer]
            out[name + ".b"] = getattr(parameters, kind + "_o_b")[layer]
        out["blk.%d.dmc_decide" % layer] = parameters.decide[layer]
        out["blk.%d.dmc_decide.bias" % layer] = parameters.decide_bias[layer]
        out["blk.%d.summary" % layer] = parameters.summary[layer]
        out["blk.%d.summary.bias" % layer] = parameters.summary_bias[layer]
    out["dmc.ratio_bias"] = parameters.ratio_bias.flatten(1)
    out["dmc.quota"] = quotas.flatten(1)
    return {name: value.detach().float().cpu().numpy() for name, value in out.items()}


def write(path, base, parameters, quotas, constants, fingerprint, name, start=None):
    """start: the Adapter that the training began from.  Its recall keys and lexicon go along: they
    are of the base model alone."""
    tensors = to_tensors(parameters, quotas)
    if start:
        tensors.update((key, value) for key, value in start.tensors.items()
                       if key.startswith("recall."))
    silt_adapter.write(path, silt_adapter.Adapter(
        tensors, fingerprint, constants["n"], constants["m"], constants["ring"],
        constants["sinks"], constants["alpha_min"], parameters.ratios,
        start and start.recall_layer, start.lexicon if start else ()), name)


def from_adapter(base, adapter):
    """An adapter file as (AdapterParameters, quotas): what the engine sees, f16 rounding included."""
    parameters = model_file.AdapterParameters(
        base, adapter.comp_tokens, adapter["blk.0.comp_q.a"].shape[0],
        adapter["blk.0.dmc_q.a"].shape[0], adapter.dmc_ratios)
    layers, kv_heads = base.layers, base.kv_heads

    def stack(pattern):
        return torch.from_numpy(np.stack([adapter[pattern % layer] for layer in range(layers)]))

    with torch.no_grad():
        parameters.comp_embd.copy_(torch.from_numpy(adapter["comp.embd"]))
        for kind in ("comp", "dmc"):
            a = [stack("blk.%d." + kind + "_" + part + ".a") for part in "qkv"]
            getattr(parameters, kind + "_qkv_a").copy_(torch.cat(a, 1))
            for part in "qkv":
                getattr(parameters, "%s_%s_b" % (kind, part)).copy_(
                    stack("blk.%d." + kind + "_" + part + ".b"))
            getattr(parameters, kind + "_o_a").copy_(stack("blk.%d." + kind + "_o.a"))
            getattr(parameters, kind + "_o_b").copy_(stack("blk.%d." + kind + "_o.b"))
        parameters.decide.copy_(stack("blk.%d.dmc_decide"))
        parameters.decide_bias.copy_(stack("blk.%d.dmc_decide.bias"))
        if adapter.get("blk.0.summary") is not None:
            parameters.summary.copy_(stack("blk.%d.summary"))
            parameters.summary_bias.copy_(stack("blk.%d.summary.bias"))
        shape = (len(adapter.dmc_ratios), layers, kv_heads)
        parameters.ratio_bias.copy_(torch.from_numpy(adapter["dmc.ratio_bias"]).view(shape))
        quotas = torch.from_numpy(adapter["dmc.quota"]).view(shape)
    return parameters, quotas


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--checkpoint", required=True, help="the folder of a training run")
    parser.add_argument("--out", required=True)
    parser.add_argument("--name", default="silt adapter")
    options = parser.parse_args()
    import checkpoint
    import gguf
    base, fingerprint = model_file.BaseModel(options.model), gguf.fingerprint(options.model)
    parameters, quotas, state = checkpoint.load(options.checkpoint, base)
    if state.get("base", fingerprint) != fingerprint:
        raise SystemExit("%s was trained on another model than %s" % (options.checkpoint,
                                                                     options.model))
    write(options.out, base, parameters, quotas, state["constants"], fingerprint, options.name)


if __name__ == "__main__":
    main()
