"""The launches of Gla/recurrent_*.cu, as GlaRecurrentKernels.cs and GlaRecurrentTile.cs beside them make them."""

import ctypes
from dataclasses import dataclass, replace

BYTES = {"float": 4, "bf16": 2, "fp16": 2}
SAVED_STEPS = 128
SHARED_BYTES_FOR_TWO_BLOCKS = 113 << 10
ROW_SOURCE_BYTES = 16


class TensorView(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("batch", ctypes.c_int64), ("time", ctypes.c_int64), ("head", ctypes.c_int64)]


class Sequences(ctypes.Structure):
    _fields_ = [("offsets", ctypes.c_void_p), ("count", ctypes.c_int), ("length", ctypes.c_int), ("reverse", ctypes.c_int)]


_SIZES = [(name, ctypes.c_int) for name in ("heads", "group", "key_size", "value_size")]
_SCALES = [(name, ctypes.c_float) for name in ("value_scale", "output_scale")]


class Forward(ctypes.Structure):
    """GlaRecurrentForward."""

    _fields_ = [
        *((name, TensorView) for name in ("decay", "write", "value", "read", "output")),
        ("initial_state", ctypes.c_void_p), ("final_state", ctypes.c_void_p), ("sequences", Sequences),
        *_SIZES, *_SCALES, ("late", ctypes.c_int), ("float_output", ctypes.c_int),
    ]


class Backward(ctypes.Structure):
    """GlaRecurrentBackward."""

    _fields_ = [
        *((name, TensorView) for name in ("decay", "write", "read", "value", "other", "output", "product", "decay_gradient")),
        ("initial_state", ctypes.c_void_p), ("saved_states", ctypes.c_void_p), ("sequences", Sequences),
        *_SIZES, *_SCALES, ("float_output", ctypes.c_int), ("float_decay_gradient", ctypes.c_int),
    ]


@dataclass(frozen=True)
class Tile:
    rows: int
    thread_columns: int
    warps: int
    steps: int = 16
    tiles: int = 2

    @property
    def threads(self):
        return 32 * self.warps

    @property
    def columns(self):
        thread_rows = 4 if self.rows <= 16 else 8 if self.rows <= 128 else self.rows // 16
        return self.warps * (32 * thread_rows // self.rows) * self.thread_columns

    @property
    def frames(self):
        return max(1, self.steps // 8)

    def blocks(self, columns):
        return -(-columns // self.columns)

    def forward_bytes(self, element, gate):
        tile = self.steps * ((2 * self.rows + self.columns) * BYTES[element] + self.rows * BYTES[gate])
        prepared = 4 * (self.steps * (3 * self.rows + self.columns) + self.frames * self.rows)
        return 4 * ROW_SOURCE_BYTES + self.tiles * tile + 2 * prepared

    def backward_bytes(self, element, gate, late):
        product = 4 * (self.steps * self.columns if late else 4)
        tile = self.steps * (2 * (self.rows + self.columns) * BYTES[element] + self.columns * BYTES[gate]) + product
        prepared = 4 * (self.steps * (2 * self.rows + 1 + 4 * self.columns) + self.frames * self.columns) + product
        return 6 * ROW_SOURCE_BYTES + 2 * (tile + prepared)

    def fit_forward(self, element, gate, limit):
        return self._fit(min(limit, SHARED_BYTES_FOR_TWO_BLOCKS), lambda tile: tile.forward_bytes(element, gate))

    def fit_backward(self, element, gate, limit):
        return self._fit(limit, lambda tile: tile.backward_bytes(element, gate, True))

    def _fit(self, limit, size):
        steps = [replace(self, steps=16), replace(self, steps=8), replace(self, steps=4), replace(self, steps=4, tiles=1)]
        return next(tile for tile in steps if size(tile) <= limit)

    def forward_defines(self, element, gate):
        return {**self._defines(element, gate), "TILES": self.tiles, "SHARED_BYTES": self.forward_bytes(element, gate)}

    def backward_defines(self, element, gate, late):
        return {**self._defines(element, gate), "LATE": int(late), "SAVED_STEPS": SAVED_STEPS,
                "SHARED_BYTES": self.backward_bytes(element, gate, late)}

    def _defines(self, element, gate):
        return {"ROWS": self.rows, "THREAD_COLUMNS": self.thread_columns, "WARPS": self.warps, "STEPS": self.steps,
                "ELEMENT": element, "GATE": gate}


WIDE = [Tile(16, 4, 4), Tile(32, 4, 4), Tile(64, 4, 4), Tile(128, 4, 8), Tile(256, 4, 8), Tile(512, 2, 8)]
NARROW = [Tile(16, 2, 1), Tile(32, 2, 1), Tile(64, 2, 4), Tile(128, 2, 4), Tile(256, 2, 4), Tile(512, 2, 4)]


def tile_of(summed, columns, lines, multiprocessors):
    size = max(0, (summed - 1).bit_length() - 4)
    wide, narrow = WIDE[size], NARROW[size]
    return wide if columns > narrow.columns and 2 * lines * wide.blocks(columns) > multiprocessors else narrow


def saved_floats(tile, tokens, sequences, heads, key_size):
    return (tokens // SAVED_STEPS + sequences) * heads * tile.blocks(key_size) * tile.rows * tile.columns
