"""Checkpoints of a training: a JSON head and raw parts, parameters f32, Adam's moments bf16.

A folder holds one, and while the next is written both: the head, which names the parts, goes last
and at once, so that whatever ends in between leaves the older one whole.
"""
import json
import os

import numpy as np
import torch

import model as model_file

PART_BYTES = 15 << 20       # checkpoints are cut into files that travel anywhere


def head_of(folder):
    """The newest checkpoint's head, None where there is none."""
    path = os.path.join(folder, "checkpoint.json")
    if not os.path.exists(path):
        return None
    with open(path) as file:
        return json.load(file)


def part_names(head):
    return head.get("files") or ["part%d.bin" % index for index in range(head["parts"])]


def write(path, data):
    """On the disk when this returns: a name never comes before what it stands for."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def save(folder, parameters, quotas, optimizer, state):
    os.makedirs(folder, exist_ok=True)
    values = torch.cat([p.detach().flatten() for p in parameters.parameters()])
    if not torch.isfinite(values).all():
        raise SystemExit("step %d: a parameter is not finite (a lower --lr?); %s has the "
                         "checkpoint before, if any" % (state["step"], folder))
    blobs = [values.cpu().numpy()]
    for key in ("exp_avg", "exp_avg_sq"):
        flat = [optimizer.state[p][key].flatten() if p in optimizer.state
                else torch.zeros(p.numel(), device=p.device) for p in parameters.parameters()]
        blobs.append(torch.cat(flat).bfloat16().view(torch.int16).cpu().numpy())
    raw = b"".join(blob.tobytes() for blob in blobs)
    old = head_of(folder)
    old = part_names(old) if old else []
    letter = "b" if "part0a.bin" in old else "a"        # never over the parts that count
    files = []
    for at in range(0, len(raw), PART_BYTES):
        files.append("part%d%s.bin" % (len(files), letter))
        write(os.path.join(folder, files[-1]), raw[at:at + PART_BYTES])
    head = {"names": [name for name, _ in parameters.named_parameters()],
            "shapes": [list(p.shape) for p in parameters.parameters()], "files": files,
            "quotas": quotas.cpu().int().tolist(), "state": state,
            "steps": {name: float(optimizer.state[p]["step"]) if p in optimizer.state else 0
                      for name, p in parameters.named_parameters()}}
    path = os.path.join(folder, "checkpoint.json")
    write(path + ".part", json.dumps(head).encode())
    os.replace(path + ".part", path)
    for name in set(old) - set(files):
        os.remove(os.path.join(folder, name))


def load(folder, base, optimizer_for=None):
    """-> (parameters, quotas, state) or, with optimizer_for(parameters), the optimizer too."""
    head = head_of(folder)
    if head is None:
        raise SystemExit("%s has no checkpoint" % folder)
    raw = b""
    for name in part_names(head):
        with open(os.path.join(folder, name), "rb") as file:
            raw += file.read()
    shapes = dict(zip(head["names"], head["shapes"]))
    parameters = model_file.AdapterParameters(
        base, shapes["comp_embd"][0], shapes["comp_o_a"][1], shapes["dmc_o_a"][1],
        head["state"]["ratios"])
    other = [name for name, p in parameters.named_parameters() if list(p.shape) != shapes.get(name)]
    if other:
        raise SystemExit("%s is of another model than %s: %s differs" % (folder, base.path,
                                                                        other[0]))
    total = sum(int(np.prod(shape)) for shape in head["shapes"])
    values = torch.from_numpy(np.frombuffer(raw, np.float32, total).copy())
    at = 0
    with torch.no_grad():
        for name, p in parameters.named_parameters():
            p.copy_(values[at:at + p.numel()].view_as(p))
            at += p.numel()
    quotas = torch.tensor(head["quotas"])
    if optimizer_for is None:
        return parameters, quotas, head["state"]
    device = base.embd.device
    parameters.to(device)
    optimizer = optimizer_for(parameters)
    moments = [torch.from_numpy(np.frombuffer(raw, np.int16, total, 4 * total + 2 * total * i)
                                .copy()).view(torch.bfloat16).float().to(device) for i in (0, 1)]
    at = 0
    for name, p in parameters.named_parameters():
        if head["steps"][name]:
            part = slice(at, at + p.numel())
            optimizer.state[p] = {"step": torch.tensor(head["steps"][name]),
                                  "exp_avg": moments[0][part].view_as(p).clone(),
                                  "exp_avg_sq": moments[1][part].view_as(p).clone()}
        at += p.numel()
    return parameters, quotas, head["state"], optimizer
