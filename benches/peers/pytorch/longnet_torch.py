#!/usr/bin/env python3
"""The cases of benches/cases.json in PyTorch, torch alone, on the CPU or a CUDA device.

    longnet_torch.py [--device cpu|cuda] [--dtype f32|f16|bf16] [--set quick|software|gpu|peers] [--json PATH]
                     [--repetitions N] [--threads N] [--cases PATH] [--only forward|backward|matmul|norm|layer]

Two ways of dilated attention, both around the kernel behind scaled_dot_product_attention (flash; for f32 on CUDA the
memory-efficient one, with TF32 off):

  strided   the kernel reads strided views of q, k and v, one call for each branch and offset of heads; results are merged by
            their log-sum-exp in place. The backward gives each call the merged output and log-sum-exp, which is the true
            gradient.
  gather    the way of the official implementation: rows of a branch are copied together, attended, scattered into a tensor
            of the full length, and the branches are mixed by the softmax of their log-sum-exps, which autograd takes
            as constants.

Rows of the same names and fields as those of the roofline benchmark, one JSON object a line, so that `roofline --join` puts
them into one table. The ways are timed in turn, outputs are overwritten with NaN before each repetition where they are
kept, and the results of the last are compared with an f64 softmax on sampled rows: the exit status tells whether all were right.
"""

import argparse
import datetime
import json
import math
import pathlib
import platform
import sys
import time

import torch

import attention
import layers

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


class Clock:
    """Seconds of a call: wall time, and on CUDA also between two events."""

    def __init__(self, device):
        self.cuda = device.type == "cuda"

    def time(self, call):
        if self.cuda:
            torch.cuda.synchronize()
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        started = time.perf_counter()
        if self.cuda:
            first.record()
        result = call()
        if self.cuda:
            last.record()
            torch.cuda.synchronize()
        wall = time.perf_counter() - started
        return result, wall, first.elapsed_time(last) / 1e3 if self.cuda else None


def spread(values, factor=1.0):
    values = sorted(value * factor for value in values)
    return {"median": values[len(values) // 2], "min": values[0], "max": values[-1]}


class Report:
    def __init__(self, arguments, device):
        self.file = open(arguments.json, "w", encoding="utf-8") if arguments.json else None
        cuda = device.type == "cuda"
        self.common = {
            "adapter": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
            "backend": device.type if cuda else f"cpu, {torch.get_num_threads()} threads",
            "driver": f"torch {torch.__version__}",
            "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            "dtype": arguments.dtype,
        }
        self.all_right = True
        print(f"adapter   {self.common['adapter']} ({self.common['backend']}, {self.common['driver']})")

    def write(self, row):
        if self.file:
            print(json.dumps(self.common | row), file=self.file, flush=True)

    def row(self, group, case, implementation, parameters, work, unit, samples, error):
        walls, devices = samples
        known = [value for value in devices if value is not None] or walls
        rates = spread([work / seconds / 1e9 for seconds in known])
        right = error <= 1
        self.all_right &= right
        print(
            f"{group:<9}{case:<38} {implementation:<16} {spread(walls, 1e3)['median']:>10.2f} ms "
            f"{rates['median']:>9.1f} ({rates['min']:.1f} to {rates['max']:.1f}) {unit}  error {error:.2f}"
            + ("" if right else "  WRONG")
        )
        self.write({
            "implementation": implementation, "group": group, "case": case, "parameters": parameters,
            "repetitions": len(walls), "wall_ms": spread(walls, 1e3),
            "device_ms": spread(known, 1e3) if known is not walls else None,
            "work": work, "unit": unit, "rate": rates,
            "error_of_allowed": error if math.isfinite(error) else None,
        })

    def failure(self, group, case, implementation, parameters, error):
        text = str(error).splitlines()[0]
        print(f"{group:<9}{case:<38} {implementation:<16} failed: {text}")
        self.write({
            "implementation": implementation, "group": group, "case": case, "parameters": parameters, "failure": text,
        })


def measure(report, clock, repetitions, group, case, parameters, work, unit, ways):
    """Times `ways`, (name, call, error of its result), in turn."""
    samples, results, alive = {}, {}, []
    for name, call, error in ways:
        try:
            results[name] = call()
            samples[name] = ([], [])
            alive.append((name, call, error))
        except (RuntimeError, NotImplementedError) as failure:
            report.failure(group, case, name, parameters, failure)
    for _ in range(repetitions):
        for name, call, _ in alive:
            # Memory of the last result may be given out again, with what it holds.
            for tensor in results.pop(name):
                tensor.fill_(math.nan)
            results[name], wall, device = clock.time(call)
            samples[name][0].append(wall)
            samples[name][1].append(device)
    for name, _, error in alive:
        report.row(group, case, name, parameters, work, unit, samples[name], error(results[name]))


def main():
    here = pathlib.Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="f32")
    parser.add_argument("--set", default=None)
    parser.add_argument("--json")
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--cases", default=None)
    parser.add_argument("--only", choices=["forward", "backward", "matmul", "norm", "layer"])
    arguments = parser.parse_args()
    # In a bundle the cases lie beside the script.
    beside, repository = here / "cases.json", here.parent.parent / "cases.json"
    path = arguments.cases or (beside if beside.exists() else repository)
    cases = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(1)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    device = torch.device(arguments.device)
    wanted = arguments.set or ("gpu" if device.type == "cuda" else "software")
    report, clock = Report(arguments, device), Clock(device)
    dtype = DTYPES[arguments.dtype]

    def run(group, case, parameters, work, unit, ways):
        measure(report, clock, arguments.repetitions, group, case, parameters, work, unit, ways)

    for group in ("forward", "backward", "matmul", "norm", "layer"):
        if arguments.only not in (None, group):
            continue
        if group in ("forward", "backward"):
            for case in cases["attention"]:
                if wanted in case["sets"]:
                    attention.run(run, group, case, device, dtype)
        else:
            layers.run(run, group, cases, wanted, device, dtype)
    sys.exit(0 if report.all_right else 1)


if __name__ == "__main__":
    main()
