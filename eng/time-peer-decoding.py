#!/usr/bin/env python3
"""Times mamba_ssm's decoding on this machine's GPU, for `Benchmarks decode --peers`.

usage: time-peer-decoding.py JSON [--batches 1,4,16,64] [--width 1024] [--layers 24] [--vocabulary 32000]

A model of mamba_ssm's own blocks in bfloat16: embedding, layers, norm, head. A step feeds one token per sequence, takes the
likeliest and brings it to the host. `decode Mamba|B4` is a step that a CUDA graph replays, as mamba_ssm's generate does with
cg=True, and `decode Mamba eager|B4` one that its Python launches. Medians of CUDA events over 50 steps. Put a checkout of
mamba_ssm on PYTHONPATH, with an empty mamba_ssm/__init__.py if its extension is not built."""
import argparse
import json
import statistics
import sys
import types
from functools import partial
from types import SimpleNamespace

import torch

try:
    import huggingface_hub  # noqa: F401
except ImportError:  # mamba2.py takes a base class from it, which decoding does not use
    stand_in = types.ModuleType("huggingface_hub")
    stand_in.PyTorchModelHubMixin = type("PyTorchModelHubMixin", (), {"__init_subclass__": lambda **_: None})
    sys.modules["huggingface_hub"] = stand_in

from mamba_ssm.modules.block import Block
from mamba_ssm.modules.mamba2 import Mamba2
from mamba_ssm.modules.mamba_simple import Mamba
from mamba_ssm.ops.triton.layer_norm import RMSNorm

NEW = dict(device="cuda", dtype=torch.bfloat16)


class Model(torch.nn.Module):
    def __init__(self, mixer, width, layers, vocabulary):
        super().__init__()
        self.embedding = torch.nn.Embedding(vocabulary, width, **NEW)
        self.layers = torch.nn.ModuleList(
            Block(width, partial(mixer, layer_idx=i, **NEW), torch.nn.Identity, norm_cls=partial(RMSNorm, **NEW),
                  fused_add_norm=True, residual_in_fp32=True) for i in range(layers))
        self.norm = RMSNorm(width, **NEW)
        self.head = torch.nn.Linear(width, vocabulary, bias=False, **NEW)

    def forward(self, tokens, state):
        hidden, residual = self.embedding(tokens), None
        for layer in self.layers:
            hidden, residual = layer(hidden, residual, inference_params=state)
        return self.head(self.norm((hidden + residual).to(hidden.dtype))).argmax(-1)


def time_step(step, tokens, count=50):
    times = []
    for i in range(count + 5):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        step()
        end.record()
        tokens.cpu()
        end.synchronize()
        if i >= 5:
            times.append(begin.elapsed_time(end))
    return statistics.median(times)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("json")
    parser.add_argument("--batches", default="1,4,16,64")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--vocabulary", type=int, default=32000)
    options = parser.parse_args()
    results = {}
    torch.set_grad_enabled(False)
    for name, mixer in (("Mamba", Mamba), ("Mamba2", Mamba2)):
        model = Model(mixer, options.width, options.layers, options.vocabulary)
        for batch in map(int, options.batches.split(",")):
            tokens = torch.zeros(batch, 1, dtype=torch.long, device="cuda")
            state = SimpleNamespace(seqlen_offset=1, key_value_memory_dict={
                i: layer.allocate_inference_cache(batch, 1) for i, layer in enumerate(model.layers)})
            step = lambda: tokens.copy_(model(tokens, state))
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                step(), step()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
            for kind, run in ((name, graph.replay), (f"{name} eager", step)):
                results[f"decode {kind}|B{batch}"] = {"fwd_ms": time_step(run, tokens)}
                print(kind, batch, f"{results[f'decode {kind}|B{batch}']['fwd_ms']:.3f} ms", flush=True)
        del model
    with open(options.json, "w") as file:
        json.dump(results, file, indent=1)


main()
