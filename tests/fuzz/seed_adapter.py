"""Cuts a GGUF file before its tensors' values: seed_adapter.py FILE OUT."""
import pathlib
import struct
import sys

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY = 8, 9


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, form):
        values = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return values[0]

    def string(self):
        length = self.take("Q")
        self.at += length

    def value(self, kind):
        if kind == STRING:
            self.string()
        elif kind == ARRAY:
            kind, count = self.take("I"), self.take("Q")
            for _ in range(count):
                self.value(kind)
        else:
            self.at += SIZES[kind]


def head_bytes(data):
    """Up to the first value, with the padding before it."""
    reader = Reader(data)
    reader.take("II")
    tensors, keys = reader.take("Q"), reader.take("Q")
    for _ in range(keys):
        reader.string()
        reader.value(reader.take("I"))
    for _ in range(tensors):
        reader.string()
        dimensions = reader.take("I")
        reader.at += 8 * dimensions + 12
    return -(-reader.at // 32) * 32


source = pathlib.Path(sys.argv[1]).read_bytes()
pathlib.Path(sys.argv[2]).write_bytes(source[:head_bytes(source)])
