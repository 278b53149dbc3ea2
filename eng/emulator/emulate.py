"""Runs a CUDA kernel of ours on the CPU: builds it with the emulator's headers, and launches it on numpy arrays."""

import ctypes
import hashlib
import mmap
import os
import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
KERNEL_INCLUDE = HERE.parents[1] / "FlaSharp.Kernels" / "Include"
CACHE = Path(tempfile.gettempdir()) / f"flasharp-emulator-{os.getuid()}"
FLAGS = [
    "-O2", "-g1", "-std=c++17", "-march=native", "-ffp-contract=off", "-fno-strict-aliasing", "-fvisibility=hidden", "-w",
    # A misaligned vector, an index outside of a local array and a shift beyond the width are errors on the GPU too.
    "-fsanitize=alignment,bounds,shift-exponent", "-fsanitize-undefined-trap-on-error",
    "-fno-optimize-sibling-calls",  # return addresses are where the kernel called
    "-fPIC",
]


class EmulatorError(Exception):
    """The kernel does not compile, or did what a kernel must not do."""


class _Buffer(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("address", ctypes.c_uint64), ("bytes", ctypes.c_uint64)]


class _Launch(ctypes.Structure):
    _fields_ = [
        ("grid", ctypes.c_uint32 * 3), ("threads", ctypes.c_uint32 * 3), ("cluster", ctypes.c_uint32 * 3),
        ("shared_bytes", ctypes.c_uint64),
        ("params", ctypes.c_void_p), ("params_bytes", ctypes.c_uint64), ("seed", ctypes.c_uint64),
        ("buffers", ctypes.POINTER(_Buffer)), ("buffer_count", ctypes.c_uint64), ("timeout", ctypes.c_double),
        ("in_order", ctypes.c_uint32), ("message", ctypes.c_char_p), ("message_bytes", ctypes.c_uint64),
    ]


class TensorView(ctypes.Structure):
    """fla::TensorView."""

    _fields_ = [("data", ctypes.c_void_p), ("batch", ctypes.c_int64), ("time", ctypes.c_int64), ("head", ctypes.c_int64)]


class Sequences(ctypes.Structure):
    """fla::Sequences."""

    _fields_ = [("offsets", ctypes.c_void_p), ("count", ctypes.c_int), ("length", ctypes.c_int), ("reverse", ctypes.c_int)]


def view(array):
    """The TensorView of an array [B, T, H, D]."""
    if array.ndim != 4 or array.strides[3] != array.itemsize:
        raise ValueError(f"An array [B, T, H, D] with dense rows is needed, not {array.shape} with strides {array.strides}.")
    return TensorView(array.ctypes.data, *(stride // array.itemsize for stride in array.strides[:3]))


class TensorMap(ctypes.Structure):
    """fla::TensorMap, as the emulator has it."""

    _fields_ = [("data", ctypes.c_void_p), ("strides", ctypes.c_int64 * 4), ("sizes", ctypes.c_int * 4), ("columns", ctypes.c_int),
                ("rows", ctypes.c_int), ("unused", ctypes.c_uint64 * 8)]


def tensor_map(array, columns, rows):
    """The TensorMap of an array [B, T, H, D] of 16-bit numbers, for boxes of so many columns and rows."""
    order = (3, 2, 1, 0)
    return TensorMap(array.ctypes.data, (ctypes.c_int64 * 4)(*(array.strides[i] // array.itemsize for i in order)),
                     (ctypes.c_int * 4)(*(array.shape[i] for i in order)), columns, rows)


def to_bf16(values):
    """The bits (uint16) of float32 values rounded to bfloat16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FFF), rounded)


def from_bf16(bits):
    """The float32 values of bfloat16 bits (uint16)."""
    return (np.asarray(bits).astype(np.uint32) << np.uint32(16)).view(np.float32)


def guarded(array):
    """A copy of the array whose end touches a page that cannot be accessed (up to alignment to 16 bytes)."""
    array = np.ascontiguousarray(array)
    page = mmap.PAGESIZE
    room = -(-max(array.nbytes, 1) // page) * page
    mapping = mmap.mmap(-1, room + page)
    base = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(base + room), ctypes.c_size_t(page), 0) != 0:
        raise OSError(ctypes.get_errno(), "mprotect failed")
    start = (room - array.nbytes) // 16 * 16
    copy = np.frombuffer(mapping, array.dtype, array.size, start).reshape(array.shape)
    copy[...] = array
    return copy


def _fingerprint(folders):
    """A hash of all that a build may read."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(p for p in Path(folder).rglob("*") if p.suffix in (".h", ".cuh", ".cu")):
            digest.update(str(path).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest


def _precompiled_header():
    """The emulator's header in the compiler's own form; the path to include."""
    header = CACHE / f"{_fingerprint([HERE]).hexdigest()[:32]}.h"
    compiled = header.with_suffix(".h.gch")
    if not compiled.exists():
        header.write_text(f'#include "{HERE / "cuda.h"}"\n')  # for a compiler that refuses the other form under a kernel's macros
        temporary = compiled.with_suffix(f".{os.getpid()}.tmp")
        subprocess.run(["g++", *FLAGS, "-x", "c++-header", str(HERE / "cuda.h"), "-o", str(temporary)], check=True)
        os.replace(temporary, compiled)
    return header


def build(source, entry, defines=None, extra_includes=()):
    """Compiles a kernel; the path of the library. `source` is a file, or the text itself if it has several lines."""
    CACHE.mkdir(mode=0o700, exist_ok=True)
    if isinstance(source, str) and "\n" in source:
        path = CACHE / f"{hashlib.sha256(source.encode()).hexdigest()[:16]}.cu"
        path.write_text(source)
        digest = _fingerprint([HERE, KERNEL_INCLUDE, *extra_includes])
        digest.update(source.encode())
    else:
        path = Path(source).resolve()
        digest = _fingerprint([HERE, KERNEL_INCLUDE, path.parent, *extra_includes])
    macros = [f"-D{name}={value}" for name, value in sorted((defines or {}).items())]
    wrapper = (
        f'#include "{path}"\n'
        'extern "C" __attribute__((visibility("default"))) int fla_emulate(const emulator::Launch* launch) {\n'
        f'    return emulator::Entry<&{entry}>::run("{entry}", *launch);\n}}\n'
    )
    digest.update(repr((FLAGS, macros, wrapper)).encode())
    library = CACHE / f"{digest.hexdigest()[:32]}.so"
    if library.exists():
        return library
    includes = [HERE / "include", *extra_includes, KERNEL_INCLUDE, path.parent]
    temporary = library.with_suffix(f".{os.getpid()}.tmp")
    command = ["g++", *FLAGS, "-shared", "-include", str(_precompiled_header()), *(f"-I{folder}" for folder in includes), *macros,
               "-x", "c++", "-", "-o", str(temporary)]
    result = subprocess.run(command, input=wrapper, capture_output=True, text=True)
    if result.returncode != 0:
        raise EmulatorError(f"{path} with {macros} does not compile:\n{result.stderr}")
    os.replace(temporary, library)
    return library


def _with_lines(message, library):
    """Turns offsets (@0x...) into the lines of the kernel that they come from."""

    def line(match):
        command = ["addr2line", "-e", str(library), "-i", "-f", "-C", match.group(1)]
        result = subprocess.run(command, capture_output=True, text=True)
        lines = result.stdout.split("\n")
        frames = list(zip(lines[0::2], lines[1::2]))
        # The innermost frame that is not the emulator's own.
        outside = [f for f in frames if not f[1].startswith(str(HERE)) and not f[1].startswith("?")] or frames
        function, place = outside[0]
        return f"at {place.split(' (')[0]} ({function.replace('(anonymous namespace)::', '')})"

    return re.sub(r"@(0x[0-9a-f]+)", line, message)


def _three(size):
    size = (size,) if isinstance(size, int) else tuple(size)
    return (ctypes.c_uint32 * 3)(*size, *(1,) * (3 - len(size)))


def launch(source, entry, defines, grid, threads, shared_bytes, params, *,
           extra_includes=(), seed=0, buffers=None, timeout=120.0, in_order=False, cluster=1):
    """Runs a kernel to its end.

    source, entry   the file (or text) and the kernel's name in C++, which may have template arguments
    defines         macros as a dictionary, or None
    grid, threads   numbers of blocks and of threads in each: an int or up to three of them
    params          the ctypes.Structure for the kernel's one parameter
    seed            of the order in which lanes, warps and blocks run, and of when background copies happen
    buffers         arrays by name that copies in the background may read; None to let them read anything
    timeout         in seconds
    in_order        whether blocks run in the order of their numbers, as those need that take turns
    cluster         numbers of blocks in a cluster that run together, as those of the grid; 1 where they need not
    """
    library = build(source, entry, defines, extra_includes)
    function = ctypes.CDLL(str(library)).fla_emulate
    named = [_Buffer(name.encode(), array.ctypes.data, array.nbytes) for name, array in (buffers or {}).items()]
    room = (ctypes.c_char * (ctypes.sizeof(params) + 64))()
    aligned = -(-ctypes.addressof(room) // 64) * 64  # as tensor maps want it
    ctypes.memmove(aligned, ctypes.addressof(params), ctypes.sizeof(params))
    message = ctypes.create_string_buffer(16384)
    call = _Launch(
        _three(grid), _three(threads), _three(cluster), shared_bytes, aligned, ctypes.sizeof(params), seed,
        (_Buffer * max(len(named), 1))(*named), len(named), timeout, in_order, ctypes.cast(message, ctypes.c_char_p), len(message),
    )
    if function(ctypes.byref(call)) != 0:
        raise EmulatorError(f"seed {seed}: " + _with_lines(message.value.decode(errors="replace"), library))
