#!/usr/bin/env python3
"""Checkpoints for the example gigapath_encode, and the same slide encoder in plain PyTorch to compare with.

    checkpoint.py convert SLIDE_ENCODER.pth WEIGHTS.safetensors [--prefix P]
                                                                     a checkpoint of PyTorch as safetensors, its names without
                                                                     the prefix that a wrapper gave them (module.)
    checkpoint.py generate WEIGHTS.safetensors [--seed N] [--depth 12] [--dim 768] [--features 1536]
                                                                     seeded weights of the whole architecture; GigaPath-Flash has
                                                                     --dim 384 --features 384
    checkpoint.py tiles TILES.safetensors [--seed N] [--count 1000]  seeded features, each tile in a cell of its own
    checkpoint.py encode WEIGHTS TILES OUT.safetensors [--double] [--threads N] [--heads 16] [--max-wsi-size 262144]
                                                                     [--tile-size 256]
                                                                     the encoder in PyTorch, f32 or f64
    checkpoint.py compare A B [--tolerance 1e-4]                     largest differences of the tensors that A and B share
    checkpoint.py check GOLDEN.safetensors...                        this file's encoder against recorded results

Python 3.9 or newer with torch (tried: 2.5), numpy and safetensors. The encoder is written from the specification of the model:
torchscale's dilated attention, in which the zeros that pad a segment are keys like others, and rows of a segment whose length
the rate does not divide are written further apart than they were read.
"""

import argparse
import json
import math
import sys
import time

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

RATES = (1, 2, 4, 8, 16)


# Weights.


def convert(arguments):
    checkpoint = torch.load(arguments.checkpoint, map_location="cpu", weights_only=True)
    state = checkpoint.get("model", checkpoint)
    state, prefix, others = without_prefix(state, arguments.prefix)
    strange = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if strange:
        sys.exit(f"error: {arguments.checkpoint}: {strange[0]} is no tensor, but {type(state[strange[0]]).__name__}")
    # Clones: a checkpoint's tensors may share memory, which the format does not allow.
    save_file({name: value.contiguous().clone() for name, value in state.items()}, arguments.out)
    print(f"{len(state)} tensors, {sum(value.numel() for value in state.values())} elements")
    if prefix:
        print(f"their names had the prefix {prefix}" + (f"; {others} tensors without it were left out" if others else ""))


FIRST = "patch_embed.proj.weight"


def without_prefix(state, prefix):
    """What is below the prefix, told or found, its names without it; the prefix; the number of tensors beside it."""
    if prefix is None:
        found = [name[: -len(FIRST)] for name in state if name == FIRST or name.endswith("." + FIRST)]
        if len(found) != 1:
            what = f"{FIRST} is there under the prefixes {found}" if found else f"no tensor is called {FIRST}"
            sys.exit(f"error: {what}: name the slide encoder's with --prefix; names begin with {list(state)[:4]}")
        prefix = found[0]
    elif prefix and not prefix.endswith("."):
        prefix += "."
    below = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    if not below:
        sys.exit(f"error: no name begins with {prefix}; names begin with {list(state)[:4]}")
    return below, prefix, len(state) - len(below)


def shapes(depth, dim, features):
    """Names of all tensors, with their shapes."""
    ffn = 4 * dim
    yield "cls_token", (1, 1, dim)
    yield "patch_embed.proj.weight", (dim, features)
    yield "patch_embed.proj.bias", (dim,)
    for layer in range(depth):
        prefix = f"encoder.layers.{layer}."
        for projection in "kvq":
            yield f"{prefix}self_attn.{projection}_proj.weight", (dim, dim)
            yield f"{prefix}self_attn.{projection}_proj.bias", (dim,)
        yield f"{prefix}self_attn.out_proj.weight", (dim, dim)
        yield f"{prefix}self_attn.out_proj.bias", (dim,)
        yield f"{prefix}ffn.fc1.weight", (ffn, dim)
        yield f"{prefix}ffn.fc1.bias", (ffn,)
        yield f"{prefix}ffn.fc2.weight", (dim, ffn)
        yield f"{prefix}ffn.fc2.bias", (dim,)
        norms = ("self_attn.inner_attn_ln", dim), ("self_attn_layer_norm", dim)
        for norm, width in (*norms, ("ffn.ffn_layernorm", ffn), ("final_layer_norm", dim)):
            yield f"{prefix}{norm}.weight", (width,)
            yield f"{prefix}{norm}.bias", (width,)
    for norm in ("encoder.layer_norm", "norm"):
        yield f"{norm}.weight", (dim,)
        yield f"{norm}.bias", (dim,)


def generate(arguments):
    draws = torch.Generator().manual_seed(arguments.seed)
    weights = {}
    for name, shape in shapes(arguments.depth, arguments.dim, arguments.features):
        unit = torch.rand(shape, generator=draws) * 2 - 1
        if name == "cls_token":
            weights[name] = unit
        elif len(shape) == 2:
            # Outputs of variance 1 for inputs of variance 1; queries and keys of more, so that attention chooses.
            gain = 1.5 if "q_proj" in name or "k_proj" in name else 1.0
            weights[name] = unit * gain * math.sqrt(3 / shape[1])
        elif name.endswith("weight"):
            weights[name] = 1 + unit / 4
        else:
            weights[name] = unit / 8
    save_file(weights, arguments.out)
    print(f"{len(weights)} tensors, {sum(value.numel() for value in weights.values())} elements")


def tiles(arguments):
    draws = torch.Generator().manual_seed(arguments.seed)
    count, cells = arguments.count, 1000
    if not 1 <= count <= cells * cells:
        sys.exit(f"error: {count} tiles do not have a cell each in a grid of {cells} x {cells}")
    # Some cells of a square hold no tissue; the others come row by row, as a scan of the slide meets them.
    width = min(cells, math.isqrt(2 * count) + 1)
    height = min(cells, -(-3 * count // (2 * width)) + 1)
    chosen = torch.randperm(width * height, generator=draws)[:count].sort().values
    coords = torch.stack((chosen % width, chosen // width), dim=1) * 256
    features = torch.randn(count, arguments.features, generator=draws)
    save_file({"features": features, "coords": coords.float()}, arguments.out)


# The encoder.


def segment_lengths(max_wsi_size, tile_size):
    tokens = (max_wsi_size // tile_size) ** 2
    first, last = math.log2(1024), int(math.log2(tokens))
    return [int(2 ** (first + i * (last - first) / 4)) for i in range(4)] + [2**last]


def position_vectors(coords, dim, tile_size):
    cells = torch.floor(coords.double() / tile_size)
    frequencies = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    x, y = (cells[:, i : i + 1] * frequencies for i in (0, 1))
    return torch.cat((y.sin(), y.cos(), x.sin(), x.cos()), dim=1)


def attend(q, k, v):
    """Attention of (segments, heads, rows, elements), with its log-sum-exp."""
    if q.dtype == torch.float32:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    # With all scores of a head at a time, for accuracy's sake.
    out, lse = torch.empty_like(q), torch.empty(q.shape[:-1], dtype=q.dtype)
    for segment in range(q.shape[0]):
        for head in range(q.shape[1]):
            scores = q[segment, head] @ k[segment, head].T / math.sqrt(q.shape[-1])
            lse[segment, head] = torch.logsumexp(scores, dim=-1)
            out[segment, head] = torch.softmax(scores, dim=-1) @ v[segment, head]
    return out, lse


def branch(qkv, length, rate):
    """One branch of (tokens, heads, elements); its output and log-sum-exp, rows of no query being uncovered."""
    tokens, heads, elements = qkv[0].shape
    length = min(length, tokens)
    segments, rows = -(-tokens // length), -(-length // rate)
    group = -(-heads // rate)
    # (first head, head behind the last, row that they begin at)
    groups = [(first, min(heads, first + group), first // group) for first in range(0, heads, group)]

    def sparse(x):
        x = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, segments * length - tokens))
        x = x.view(segments, length, heads, elements)
        x = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, rows * rate - length))
        x = x.view(segments, rows, rate, heads, elements)
        return torch.cat([x[:, :, offset, a:b] for a, b, offset in groups], dim=2).transpose(1, 2)

    part, part_lse = attend(*(sparse(x) for x in qkv))
    out = part.new_zeros(segments, rows, rate, heads, elements)
    lse = part_lse.new_full((segments, rows, rate, heads), -1e8)
    for a, b, offset in groups:
        out[:, :, offset, a:b] = part[:, a:b].transpose(1, 2)
        lse[:, :, offset, a:b] = part_lse[:, a:b].transpose(1, 2)
    return out.flatten(0, 2)[:tokens], lse.flatten(0, 2)[:tokens]


def dilated_attention(qkv, lengths, rates):
    parts = [branch(qkv, length, rate) for length, rate in zip(lengths, rates)]
    shares = torch.softmax(torch.stack([lse for _, lse in parts]), dim=0).unsqueeze(-1)
    return sum(share * out for share, (out, _) in zip(shares, parts))


class Encoder:
    """The slide encoder; weights of any size whose keys are those of the model."""

    def __init__(self, weights, heads, lengths, rates=RATES, tile_size=256):
        self.weights, self.heads, self.lengths, self.rates, self.tile_size = weights, heads, lengths, rates, tile_size
        self.depth = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.layers."))

    def linear(self, name, x):
        return torch.nn.functional.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, name, x, eps=1e-5):
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return torch.nn.functional.layer_norm(x, weight.shape, weight, bias, eps)

    def states(self, features, coords):
        """The input of the first layer, then the output of each, (tokens, dim)."""
        x = self.linear("patch_embed.proj", features)
        x = x + position_vectors(coords, x.shape[1], self.tile_size).to(x.dtype)
        x = torch.cat((self.weights["cls_token"][0], x))
        yield x
        for layer in range(self.depth):
            prefix = f"encoder.layers.{layer}."
            normal = self.norm(f"{prefix}self_attn_layer_norm", x)
            qkv = [self.linear(f"{prefix}self_attn.{p}_proj", normal).unflatten(1, (self.heads, -1)) for p in "qkv"]
            mixed = dilated_attention(qkv, self.lengths, self.rates).flatten(1)
            mixed = self.norm(f"{prefix}self_attn.inner_attn_ln", mixed)
            x = x + self.linear(f"{prefix}self_attn.out_proj", mixed)
            inner = self.linear(f"{prefix}ffn.fc1", self.norm(f"{prefix}final_layer_norm", x))
            inner = self.norm(f"{prefix}ffn.ffn_layernorm", torch.nn.functional.gelu(inner))
            x = x + self.linear(f"{prefix}ffn.fc2", inner)
            yield x

    def embeddings(self, x):
        """Of CLS and of the mean of the tiles."""
        return self.norm("norm", x[0], 1e-6), self.norm("norm", x[1:].mean(dim=0), 1e-6)

    @torch.no_grad()
    def encode(self, features, coords):
        """All results, named as gigapath_encode names them, and all states."""
        states = list(self.states(features, coords))
        encoded = self.norm("encoder.layer_norm", states[-1])
        cls, pool = self.embeddings(encoded)
        layers = [self.embeddings(state) for state in states]
        layers_cls, layers_pool = (torch.stack(of_kind) for of_kind in zip(*layers))
        named = {"cls": cls, "pool": pool, "layers_cls": layers_cls, "layers_pool": layers_pool, "tiles": encoded[1:]}
        return named, states, encoded


def encode(arguments):
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    dtype = torch.float64 if arguments.double else torch.float32
    weights = {name: value.to(dtype) for name, value in load_file(arguments.weights).items()}
    slide = load_file(arguments.tiles)
    features, coords = slide["features"].to(dtype), slide["coords"]
    lengths = segment_lengths(arguments.max_wsi_size, 256)
    encoder = Encoder(weights, arguments.heads, lengths, tile_size=arguments.tile_size)
    started = time.perf_counter()
    named, states, _ = encoder.encode(features, coords)
    seconds = time.perf_counter() - started
    largest = max(state.abs().max().item() for state in states)
    lost = [name for name, value in named.items() if not value.isfinite().all()]
    if lost:
        sys.exit(f"error: not finite, and not saved: {', '.join(lost)}")
    save_file({name: value.float().contiguous() for name, value in named.items()}, arguments.out)
    # Saved first: whoever reads the lines may have gone.
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {dtype}: {seconds:.2f} s")
    print(f"largest element of a state {largest:.2f}, rms of the last {states[-1].square().mean().sqrt().item():.2f}")


# Comparisons.


def difference(given, expected):
    given, expected = given.double().flatten(), expected.double().flatten()
    error, largest = (given - expected).abs().max().item(), expected.abs().max().item()
    cosine = torch.nn.functional.cosine_similarity(given, expected, dim=0).item()
    return error, largest, error / largest if largest else math.inf, cosine


def report(name, given, expected, tolerance):
    """Prints a line; whether the difference is allowed."""
    if given.shape != expected.shape:
        print(f"{name:<24} shapes {tuple(given.shape)} and {tuple(expected.shape)}  DIFFERENT")
        return False
    error, largest, ratio, cosine = difference(given, expected)
    # NaN is not allowed either.
    right = ratio <= tolerance
    print(f"{name:<24} max abs {error:.3e}  largest {largest:.3e}  ratio {ratio:.3e}  cosine {cosine:.9f}"
          + ("" if right else "  DIFFERENT"))
    return right


def compare(arguments):
    given, expected = load_file(arguments.a), load_file(arguments.b)
    shared = [name for name in given if name in expected]
    if not shared:
        sys.exit("error: the files share no tensor")
    alone = sorted(set(given) ^ set(expected))
    if alone:
        print(f"in one file only: {', '.join(alone)}")
    results = [report(name, given[name], expected[name], arguments.tolerance) for name in shared]
    sys.exit(0 if all(results) else 1)


def check(arguments):
    """Each tensor within ten times the noise that its file states for f32, in which results are stored."""
    results = []
    for path in arguments.files:
        with safe_open(path, "pt") as file:
            config, noise = (json.loads(file.metadata()[key]) for key in ("config", "f32_noise"))
        tensors = load_file(path)
        weights = {name[2:]: value.double() for name, value in tensors.items() if name.startswith("w.")}
        encoder = Encoder(
            weights, config["H"], config["segment_length"], config["dilated_ratio"], config["tile_size"]
        )
        print(path)
        for item in range(config["B"]):
            named, states, encoded = encoder.encode(tensors["x"][item].double(), tensors["coords"][item])
            named |= {f"hidden.{i}": state for i, state in enumerate(states)}
            named["encoder_out"] = encoded
            for name, given in named.items():
                if name in tensors:
                    expected = tensors[name][:, item] if name.startswith("layers_") else tensors[name][item]
                    largest = expected.abs().max().item()
                    tolerance = max(1e-6, 10 * noise.get(name, 0) / largest)
                    results.append(report(f"{item} {name}", given, expected, tolerance))
    print(f"{sum(results)} of {len(results)} within their tolerance")
    sys.exit(0 if results and all(results) else 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(run, *positional):
        added = commands.add_parser(run.__name__)
        added.set_defaults(run=run)
        for name in positional:
            added.add_argument(name)
        return added

    command(convert, "checkpoint", "out").add_argument("--prefix")
    added = command(generate, "out")
    added.add_argument("--seed", type=int, default=1)
    added.add_argument("--depth", type=int, default=12)
    added.add_argument("--dim", type=int, default=768)
    added.add_argument("--features", type=int, default=1536)
    added = command(tiles, "out")
    added.add_argument("--seed", type=int, default=2)
    added.add_argument("--count", type=int, default=1000)
    added.add_argument("--features", type=int, default=1536)
    added = command(encode, "weights", "tiles", "out")
    added.add_argument("--double", action="store_true")
    added.add_argument("--threads", type=int)
    added.add_argument("--heads", type=int, default=16)
    added.add_argument("--max-wsi-size", type=int, default=262144)
    # In pixels of level 0: 512 for tiles of 256 at 20x of a slide scanned at 40x.
    added.add_argument("--tile-size", type=int, default=256)
    added = command(compare, "a", "b")
    added.add_argument("--tolerance", type=float, default=1e-4)
    command(check).add_argument("files", nargs="+")
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
