"""Reads and writes GGUF files (version 3) with numpy alone.

Only the tensor types that the retrofit needs are decoded: F32, F16, BF16, Q8_0, Q4_0, Q4_1.  The
writer produces F32, F16, Q8_0 and Q4_1, which is enough for adapters and for the tiny test model.
Shapes here are numpy's, slowest axis first; GGUF stores them the other way round.
"""
import ctypes
import mmap
import os
import struct

import numpy as np

F32, F16, Q4_0, Q4_1, Q8_0, BF16 = 0, 1, 2, 3, 8, 30
TYPE_NAME = {F32: "F32", F16: "F16", Q4_0: "Q4_0", Q4_1: "Q4_1", Q8_0: "Q8_0", BF16: "BF16"}
BLOCK = {F32: (1, 4), F16: (1, 2), BF16: (1, 2), Q4_0: (32, 18), Q4_1: (32, 20), Q8_0: (32, 34)}

U8, I8, U16, I16, U32, I32, FLOAT32, BOOL, STRING, ARRAY, U64, I64, FLOAT64 = range(13)
_SCALAR = {U8: "<B", I8: "<b", U16: "<H", I16: "<h", U32: "<I", I32: "<i", FLOAT32: "<f",
           BOOL: "<?", U64: "<Q", I64: "<q", FLOAT64: "<d"}


class GGUFError(ValueError):
    """The file is not a GGUF this reader can use; the text says why."""


class NoHash(GGUFError):
    """XXH3 is not on this machine."""


def dequantise(data, kind, shape):
    """Raw little-endian bytes of one tensor -> float32 array of `shape`."""
    count = int(np.prod(shape))
    if kind == F32:
        return np.frombuffer(data, "<f4", count).reshape(shape).copy()
    if kind == F16:
        return np.frombuffer(data, "<f2", count).astype(np.float32).reshape(shape)
    if kind == BF16:
        wide = np.frombuffer(data, "<u2", count).astype(np.uint32) << 16
        return wide.view(np.float32).reshape(shape)
    width, size = BLOCK[kind]
    rows = np.frombuffer(data, np.uint8, count // width * size).reshape(-1, size)
    scale = rows[:, :2].copy().view("<f2").astype(np.float32)
    if kind == Q8_0:
        return (rows[:, 2:].view(np.int8) * scale).astype(np.float32).reshape(shape)
    head = 4 if kind == Q4_1 else 2
    # The low nibbles are the first 16 values of a block, the high nibbles the last 16.
    nibbles = np.concatenate([rows[:, head:] & 15, rows[:, head:] >> 4], 1).astype(np.float32)
    if kind == Q4_1:
        return (nibbles * scale + rows[:, 2:4].copy().view("<f2").astype(np.float32)).reshape(shape)
    return ((nibbles - 8) * scale).reshape(shape)


def quantise(array, kind):
    """float32 array -> bytes in the tensor type `kind`."""
    flat = np.ascontiguousarray(array, np.float32)
    if kind == F32:
        return flat.astype("<f4").tobytes()
    if kind == F16:
        return flat.astype("<f2").tobytes()
    blocks = flat.reshape(-1, 32)
    if kind == Q8_0:
        scale = (np.abs(blocks).max(1, keepdims=True) / 127).astype("<f2")
        inverse = np.where(scale == 0, 0, 1 / np.where(scale == 0, 1, scale.astype(np.float32)))
        codes = np.rint(blocks * inverse).clip(-127, 127).astype(np.int8)
        return np.concatenate([scale.view(np.uint8), codes.view(np.uint8)], 1).tobytes()
    if kind == Q4_1:
        low = blocks.min(1, keepdims=True)
        scale = ((blocks.max(1, keepdims=True) - low) / 15).astype("<f2")
        low = low.astype("<f2")
        inverse = np.where(scale == 0, 0, 1 / np.where(scale == 0, 1, scale.astype(np.float32)))
        codes = np.rint((blocks - low.astype(np.float32)) * inverse).clip(0, 15).astype(np.uint8)
        packed = codes[:, :16] | (codes[:, 16:] << 4)
        return np.concatenate([scale.view(np.uint8), low.view(np.uint8), packed], 1).tobytes()
    raise GGUFError("cannot write tensor type %d" % kind)


class Reader:
    """One open GGUF: `meta` is a dict, `tensors` maps a name to (type, numpy shape, offset)."""

    def __init__(self, path):
        self.path = path
        with open(path, "rb") as file:
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.at = 0
        if self.data[:4] != b"GGUF":
            raise GGUFError("%s: not a GGUF file" % path)
        self.at = 4
        version, tensor_count, meta_count = self._take("<I"), self._take("<Q"), self._take("<Q")
        if version not in (2, 3):
            raise GGUFError("%s: GGUF version %d is not supported" % (path, version))
        self.meta = {}
        for _ in range(meta_count):
            key = self._string()
            self.meta[key] = self._value(self._take("<I"))
        self.tensors = {}
        for _ in range(tensor_count):
            name = self._string()
            shape = tuple(self._take("<Q") for _ in range(self._take("<I")))[::-1]
            kind = self._take("<I")
            self.tensors[name] = (kind, shape, self._take("<Q"))
        align = self.meta.get("general.alignment", 32)
        self.base = (self.at + align - 1) // align * align

    def _take(self, layout):
        value = struct.unpack_from(layout, self.data, self.at)[0]
        self.at += struct.calcsize(layout)
        return value

    def _string(self):
        size = self._take("<Q")
        text = self.data[self.at:self.at + size]
        self.at += size
        return text.decode("utf-8", "surrogateescape")

    def _value(self, kind):
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            inner, count = self._take("<I"), self._take("<Q")
            return [self._value(inner) for _ in range(count)]
        return self._take(_SCALAR[kind])

    def tensor(self, name):
        """The tensor as float32, dequantised."""
        if name not in self.tensors:
            raise GGUFError("%s: no tensor %s" % (self.path, name))
        kind, shape, offset = self.tensors[name]
        if kind not in BLOCK:
            raise GGUFError("%s: tensor %s has type %d, which is not supported"
                            % (self.path, name, kind))
        width, size = BLOCK[kind]
        start = self.base + offset
        return dequantise(self.data[start:start + int(np.prod(shape)) // width * size], kind, shape)


def _pack_string(text):
    raw = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def _pack_value(kind, value):
    """(value type, value) -> bytes; an array's kind is a pair (ARRAY, element type)."""
    if isinstance(kind, tuple):
        inner = kind[1]
        head = struct.pack("<IIQ", ARRAY, inner, len(value))
        if inner == STRING:
            return head + b"".join(_pack_string(text) for text in value)
        return head + b"".join(struct.pack(_SCALAR[inner], item) for item in value)
    if kind == STRING:
        return struct.pack("<I", STRING) + _pack_string(value)
    return struct.pack("<I", kind) + struct.pack(_SCALAR[kind], value)


def write(path, meta, tensors, align=32):
    """meta: list of (key, kind, value).  tensors: list of (name, float32 array, tensor type)."""
    head = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(meta))]
    for key, kind, value in meta:
        head.append(_pack_string(key) + _pack_value(kind, value))
    blobs, offset = [], 0
    for name, array, kind in tensors:
        raw = quantise(array, kind)
        shape = np.shape(array)[::-1]
        head.append(_pack_string(name) + struct.pack("<I", len(shape))
                    + b"".join(struct.pack("<Q", size) for size in shape)
                    + struct.pack("<IQ", kind, offset))
        raw += b"\0" * (-len(raw) % align)
        blobs.append(raw)
        offset += len(raw)
    head = b"".join(head)
    # Written beside the target and renamed, so that a reader never sees half a file.
    with open(path + ".part", "wb") as file:
        file.write(head + b"\0" * (-len(head) % align) + b"".join(blobs))
    os.replace(path + ".part", path)


def fingerprint(path):
    """XXH3-64 of the whole file as 16 hex digits: what an adapter is bound to."""
    with open(path, "rb") as file:
        data = file.read()
    try:
        import xxhash
        return "%016x" % xxhash.xxh3_64_intdigest(data)
    except ImportError:
        pass
    for name in ("libxxhash.so.0", "libxxhash.so"):
        try:
            digest = ctypes.CDLL(name).XXH3_64bits
        except OSError:
            continue
        digest.restype, digest.argtypes = ctypes.c_uint64, (ctypes.c_char_p, ctypes.c_size_t)
        return "%016x" % digest(data, len(data))
    raise NoHash("XXH3 not found: install libxxhash0 or the Python package xxhash")
