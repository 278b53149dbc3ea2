"""The launches of SelectiveScan/*.cu, as SelectiveScanKernels.cs and SelectiveScanTile.cs beside them make them."""

import ctypes
from dataclasses import dataclass

import emulate

SLICE = 16
PART = 8


class Scan(ctypes.Structure):
    """fla::SelectiveScan."""

    _fields_ = [
        *((name, emulate.TensorView) for name in ("u", "delta", "z", "b", "c")),
        *((name, ctypes.c_void_p) for name in ("a", "d", "delta_bias")), ("sequences", emulate.Sequences),
        *((name, ctypes.c_int) for name in ("channels", "group_channels", "states", "segments", "segment_steps", "groups",
                                            "is_log", "parts")),
    ]


class Forward(ctypes.Structure):
    """SelectiveScanForward."""

    _fields_ = [("scan", Scan), ("y", emulate.TensorView),
                *((name, ctypes.c_void_p) for name in ("initial", "final", "running", "saved"))]


class Backward(ctypes.Structure):
    """SelectiveScanBackward."""

    _fields_ = [
        ("scan", Scan), *((name, emulate.TensorView) for name in ("dy", "du", "ddelta", "dz")),
        *((name, ctypes.c_void_p) for name in ("saved", "final_gradient", "initial_gradient", "running", "a_parts", "d_parts",
                                               "bias_parts", "b_parts", "c_parts")),
        ("tokens", ctypes.c_int64),
    ]


class GradientSums(ctypes.Structure):
    """SelectiveScanGradientSums."""

    _fields_ = [("matrix_parts", ctypes.c_void_p), ("matrices", ctypes.c_void_p * 2), ("parts", ctypes.c_void_p * 3),
                ("sums", ctypes.c_void_p * 3), ("a_log", ctypes.c_void_p), ("matrix_size", ctypes.c_int64),
                ("sizes", ctypes.c_int64 * 3), ("group_blocks", ctypes.c_int), ("rows", ctypes.c_int)]


class SegmentState(ctypes.Structure):
    """SelectiveScanSegmentState."""

    _fields_ = [("scan", Scan), ("dy", emulate.TensorView), ("states", ctypes.c_void_p), ("delta_sums", ctypes.c_void_p)]


class SegmentJoin(ctypes.Structure):
    """SelectiveScanSegmentJoin."""

    _fields_ = [*((name, ctypes.c_void_p) for name in ("states", "delta_sums", "a", "initial")), ("sequences", ctypes.c_int64),
                *((name, ctypes.c_int) for name in ("channels", "states_count", "segments", "parts", "backward", "is_log"))]


@dataclass(frozen=True)
class Tile:
    element: str
    gated: bool
    softplus: bool
    vector: int = 8
    narrow: bool = False
    long: bool = False

    @property
    def lanes(self):
        return 8 if self.narrow else 4

    @property
    def warps(self):
        return 4

    @property
    def steps(self):
        return 32 * {(False, False): 1, (True, True): 6}.get((self.narrow, self.long), 2)

    @property
    def threads(self):
        return 32 * self.warps

    @property
    def channels(self):
        return self.threads // self.lanes

    def blocks(self, channels, groups):
        return groups * self.group_blocks(channels, groups)

    def group_blocks(self, channels, groups):
        return -(-(channels // groups) // self.channels)

    @property
    def state_bytes(self):
        return self.steps * (9 * self.channels + 8 * SLICE)

    @property
    def sum_bytes(self):
        return self.steps * 4 * (self.channels + 32 // self.lanes)

    @property
    def forward_bytes(self):
        return 2 * (self.state_bytes + self.sum_bytes) + 4 * 8  # barriers

    @property
    def backward_bytes(self):
        stored = 2 if self.element == "bf16" else 4
        element = 4 if self.element == "float" else 2
        return (4 * self.steps * (9 * self.channels + self.warps * SLICE) + 2 * self.steps * self.channels * stored
                + 2 * self.steps * SLICE * element + (self.steps // PART - 2) * self.threads * 16
                + self.warps * 13 * 16 + 4 * self.threads + 64)

    def defines(self, shared_bytes, **more):
        return {"ELEMENT": self.element, "GATED": int(self.gated), "SOFTPLUS": int(self.softplus), "VECTOR": self.vector,
                "LANES": self.lanes, "WARPS": self.warps, "STEPS": self.steps, "SHARED_BYTES": shared_bytes, **more}
