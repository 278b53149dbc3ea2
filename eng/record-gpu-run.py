#!/usr/bin/env python3
"""Runs the tests and the main job of a GPU bundle on this machine and records what came of it.

    eng/record-gpu-run.py BUNDLE OUT --commit COMMIT [--arguments ...] [--layers gla,mamba,...] [--tests A,B] [--skip-tests]
                          [--sanitizers memcheck,racecheck,synccheck [--grid 'A,B;C']] [--limit SECONDS] [--reference]

BUNDLE is the unpacked folder that eng/pack-gpu-bundle.sh made. OUT gets record.json, record.md, and the logs. The namespaces
and classes of --tests and the sanitizers, these for each part of --grid, have a process each, all at the same time, which share
the machine's cores; the main job comes after them.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import signal
import subprocess
import tempfile
import time
import xml.etree.ElementTree as xml

RUNNER = pathlib.Path(__file__).with_name("run-on-python-libtorch.sh")
FINAL = re.compile(r"^final val_loss=(\S+) tokens_per_second=(\S+) checkpoint=(\S+)$", re.M)


def machine() -> dict:
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    name, driver, memory = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0].split(", ")
    import torch
    return {"gpu": name, "driver": driver, "memory": memory, "libtorch": torch.__version__}


def run(bundle: pathlib.Path, log: pathlib.Path, command: list[str], under: tuple[str, ...] = (), limit: float | None = None,
        **environment: str) -> tuple[str, int | str, float]:
    """The output, exit code and seconds of a program of the bundle."""
    start = time.monotonic()
    with log.open("w") as stream:
        program = subprocess.Popen([*under, "bash", str(RUNNER), str(bundle), *command], stdout=stream, stderr=subprocess.STDOUT,
                                   stdin=subprocess.DEVNULL, env={**os.environ, **environment}, start_new_session=True)
        try:
            code = program.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(program.pid, signal.SIGKILL)  # with what it started: a sanitizer starts the tests
            program.wait()
            code = f"cut off after {limit} s"
    return log.read_text(), code, round(time.monotonic() - start, 1)


def run_tests(bundle: pathlib.Path, out: pathlib.Path, name: str, limit: float | None, cores: int) -> dict:
    """The tests of a class, whose name ends in Tests, of a namespace, or all."""
    results = out / f"tests-{name or 'all'}.xml"
    results.unlink(missing_ok=True)  # of an earlier run: one that is cut off leaves none
    chosen = ["FlaSharp.Tests", *(["-class" if name.endswith("Tests") else "-namespace", name] if name else [])]
    command = [*chosen, "-noColor", "-reporter", "verbose", "-result-xml", str(results)]
    _, code, seconds = run(bundle, results.with_suffix(".log"), command, limit=limit, FLASHARP_REQUIRE_GPU="1",
                           OMP_NUM_THREADS=str(cores))
    cases = list(xml.parse(results).getroot().iter("test")) if results.exists() else []
    by_result = {result: [case for case in cases if case.get("result") == result] for result in ("Pass", "Fail", "Skip")}
    return {
        "command": "FLASHARP_REQUIRE_GPU=1 " + " ".join(chosen), "exit_code": code, "seconds": seconds,
        "passed": len(by_result["Pass"]), "failed": len(by_result["Fail"]), "skipped": len(by_result["Skip"]),
        "on_gpu": sum(".Gpu." in case.get("type", "") for case in by_result["Pass"]),
        "failures": [case.get("name") for case in by_result["Fail"]],
        "skips": {case.get("name"): (case.findtext("reason") or "").strip() for case in by_result["Skip"]},
    }


def run_sanitizer(bundle: pathlib.Path, out: pathlib.Path, tool: str, grid: str, limit: float | None, cores: int) -> dict:
    """The small grid of every kernel, or some of its tests, under a tool of compute-sanitizer, which passes libtorch's own
    kernels by."""
    # synccheck follows as many mbarriers as it is told to; its own guess is too small for kernels that are not nvcc's.
    options = ("--num-cuda-barriers", "65536") if tool == "synccheck" else ()
    under = ("compute-sanitizer", "--tool", tool, *options, "--kernel-name-exclude", "kernel_substring=at6native")
    name = "FlaSharp.Tests.Gpu.SmallGridTests"
    chosen = [part for test in grid.split(",") for part in ("-method", f"{name}.{test}")] if grid else ["-class", name]
    log = out / (f"{tool}-{grid.split(',')[0]}.log" if grid else f"{tool}.log")
    command = ["FlaSharp.Tests", *chosen, "-noColor", "-reporter", "verbose"]
    # Without torch's cache every tensor is an allocation of its own: what is written beside it is seen.
    output, code, seconds = run(bundle, log, command, under, limit,
                                FLASHARP_REQUIRE_GPU="1", PYTORCH_NO_CUDA_MEMORY_CACHING="1", OMP_NUM_THREADS=str(cores))
    tests = re.search(r"Total: (\d+), Errors: \d+, Failed: (\d+)", output)
    summary = re.search(r"=+ ((?:ERROR|RACECHECK) SUMMARY: .*)", output)
    return {
        "tool": tool, "command": " ".join((*under, *command)), "exit_code": code, "seconds": seconds,
        "tests": int(tests[1]) if tests else None, "failed": int(tests[2]) if tests else None,
        "summary": summary[1] if summary else "none",
    }


def run_main_job(bundle: pathlib.Path, out: pathlib.Path, layer: str, kernels: bool, arguments: list[str]) -> dict:
    command = ["LanguageModel", "--layer", layer, "--device", "cuda", *arguments]
    name = layer if kernels else f"{layer}-reference"
    with tempfile.TemporaryDirectory() as folder:  # the checkpoint is large, and no part of the record
        output, code, seconds = run(bundle, out / f"main-{name}.log", [*command, "--out", folder],
                                    **({} if kernels else {"FLASHARP_DISABLE_KERNELS": "1"}))
    final = FINAL.search(output)
    return {
        "layer": layer, "kernels": kernels, "command": " ".join(command), "exit_code": code, "seconds": seconds,
        "val_loss": float(final[1]) if final else None, "tokens_per_second": float(final[2]) if final else None,
    }


def table(record: dict) -> str:
    lines = [
        f"# GPU run of {record['date']}", "",
        f"Commit {record['commit']}; {record['gpu']}, driver {record['driver']}, libtorch {record['libtorch']}.", "",
    ]
    for tests in record["tests"]:
        lines += [
            f"Tests: {tests['passed']} passed ({tests['on_gpu']} of them on the GPU), {tests['failed']} failed, "
            f"{tests['skipped']} skipped, {tests['seconds']} s, exit code {tests['exit_code']}. "
            f"Command: `{tests['command']}`.", "",
            *[f"- failed: {name}" for name in tests["failures"]],
            *[f"- skipped: {name}: {reason}" for name, reason in tests["skips"].items()], "",
        ]
    if record["sanitizers"]:
        lines += ["| compute-sanitizer | says | tests | failed | exit code | seconds | command |", 7 * "|---" + "|"]
        lines += [f"| {tool['tool']} | {tool['summary']} | {tool['tests']} | {tool['failed']} | {tool['exit_code']} | "
                  f"{tool['seconds']} | `{tool['command']}` |"
                  for tool in record["sanitizers"]]
        lines.append("")
    if record["main_job"]:
        lines += ["| layer | kernels | val_loss, nats per byte | tokens per second | seconds in all | command |",
                  6 * "|---" + "|"]
        lines += [f"| {job['layer']} | {'yes' if job['kernels'] else 'no'} | {job['val_loss']} | {job['tokens_per_second']} | "
                  f"{job['seconds']} | `{job['command']}` |"
                  for job in record["main_job"]]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--commit", required=True)
    parser.add_argument("--layers", default="gla,mamba,mamba2,softmax,hybrid")
    parser.add_argument("--arguments", default="--minutes 1", help="of the main job")
    parser.add_argument("--reference", action="store_true", help="each main job once more without kernels")
    parser.add_argument("--tests", default="", help="namespaces, and classes, whose names end in Tests; all if empty")
    parser.add_argument("--skip-tests", action="store_true")
    parser.add_argument("--limit", type=float, help="seconds for each process of tests, and each sanitizer")
    parser.add_argument("--sanitizers", default="", help="tools of compute-sanitizer to run the small grid under")
    parser.add_argument("--grid", default="", help="tests of the small grid, parts of it divided by ;, all if empty")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    record = {"date": time.strftime("%Y-%m-%d"), "commit": options.commit, **machine()}
    names = [] if options.skip_tests else options.tests.split(",")
    tools = [tool for tool in options.sanitizers.split(",") if tool]
    grid = options.grid.split(";")
    processes = max(1, len(names) + len(tools) * len(grid))
    with concurrent.futures.ThreadPoolExecutor(max_workers=processes) as pool:
        rest = (options.limit, max(1, (os.cpu_count() or 1) // processes))
        tests = [pool.submit(run_tests, options.bundle, options.out, name, *rest) for name in names]
        checks = [pool.submit(run_sanitizer, options.bundle, options.out, tool, part, *rest) for tool in tools for part in grid]
        record["tests"] = [test.result() for test in tests]
        record["sanitizers"] = [check.result() for check in checks]
    record["main_job"] = [run_main_job(options.bundle, options.out, layer, kernels, options.arguments.split())
                          for layer in options.layers.split(",") if layer
                          for kernels in ((True, False) if options.reference else (True,))]
    (options.out / "record.json").write_text(json.dumps(record, indent=2) + "\n")
    (options.out / "record.md").write_text(table(record))
    print(table(record))


if __name__ == "__main__":
    main()
