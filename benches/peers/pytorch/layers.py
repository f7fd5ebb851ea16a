"""Products, layer norms and a whole encoder layer; see longnet_torch.py."""

import torch
from torch.nn import functional

import attention

ROWS, WIDTH, HEADS, FFN = 4096, 768, 16, 3072
# Of GigaPath's settings of a million tokens.
BRANCHES = {"segments": [1024, 5792, 32768, 185363, 1048576], "rates": [1, 2, 4, 8, 16]}
LENGTHS = {"quick": [256], "software": [1024, 2048], "gpu": [1000, 5000, 20000]}


def random(device, dtype, *shape):
    return torch.rand(shape, device=device).mul_(2).sub_(1).to(dtype)


def run(measure, group, cases, wanted, device, dtype):
    name = f"torch {device.type}"
    if group == "matmul":
        for case in cases["products"]:
            if wanted in case["sets"]:
                product(measure, name, case, device, dtype)
    elif group == "norm":
        norm(measure, name, device, dtype)
    else:
        for tokens in LENGTHS.get(wanted, []):
            layer(measure, f"torch strided {device.type}", tokens, device, dtype)


def product(measure, name, case, device, dtype):
    rows, inner, columns = case["rows"], case["inner"], case["columns"]
    stored_a = (inner, rows) if case.get("transpose_a") else (rows, inner)
    stored_b = (columns, inner) if case.get("transpose_b") else (inner, columns)
    a, b = random(device, dtype, *stored_a), random(device, dtype, *stored_b)
    a = a.T if case.get("transpose_a") else a
    b = b.T if case.get("transpose_b") else b
    c = torch.empty(rows, columns, device=device, dtype=dtype)

    def call():
        torch.mm(a, b, out=c)
        return [c]

    def check(results):
        sampled = attention.sampled_rows(rows)
        return attention.error(results[0][sampled], a[sampled].double() @ b.double(), dtype)

    parameters = {key: value for key, value in case.items() if key not in ("name", "sets")}
    measure("matmul", case["name"], parameters, 2 * rows * inner * columns, "GFLOP/s", [(name, call, check)])


def norm(measure, name, device, dtype):
    x, weight, bias = (random(device, dtype, *shape) for shape in ((ROWS, WIDTH), (WIDTH,), (WIDTH,)))

    def call():
        return [functional.layer_norm(x, (WIDTH,), weight, bias)]

    def check(results):
        expected = functional.layer_norm(x.double(), (WIDTH,), weight.double(), bias.double())
        return attention.error(results[0], expected, dtype)

    parameters = {"rows": ROWS, "width": WIDTH}
    work = 2 * ROWS * WIDTH * x.element_size()
    measure("norm", f"layer_norm, {ROWS} rows of {WIDTH}", parameters, work, "GB/s", [(name, call, check)])


def encoder_layer(weights, x, attend):
    """A pre-norm layer with sub-LN; `attend` takes q, k and v of (tokens, heads, elements)."""

    def linear(x, name):
        return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def layer_norm(x, name):
        return functional.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    normal = layer_norm(x, "norm_1")
    q, k, v = (linear(normal, name).unflatten(-1, (HEADS, -1)) for name in ("q", "k", "v"))
    x = x + linear(layer_norm(attend(q, k, v).flatten(-2), "inner_norm"), "out")
    hidden = functional.gelu(linear(layer_norm(x, "norm_2"), "fc1"))
    return x + linear(layer_norm(hidden, "ffn_norm"), "fc2")


def layer(measure, name, tokens, device, dtype):
    case = dict(BRANCHES, tokens=tokens, heads=HEADS, head_dim=WIDTH // HEADS)
    weights = {}
    for part, rows, columns in (
        ("q", WIDTH, WIDTH), ("k", WIDTH, WIDTH), ("v", WIDTH, WIDTH), ("out", WIDTH, WIDTH),
        ("fc1", FFN, WIDTH), ("fc2", WIDTH, FFN),
    ):
        weights[f"{part}.weight"] = random(device, dtype, rows, columns) / columns**0.5
        weights[f"{part}.bias"] = torch.zeros(rows, device=device, dtype=dtype)
    for part, width in (("norm_1", WIDTH), ("inner_norm", WIDTH), ("norm_2", WIDTH), ("ffn_norm", FFN)):
        weights[f"{part}.weight"] = torch.ones(width, device=device, dtype=dtype)
        weights[f"{part}.bias"] = torch.zeros(width, device=device, dtype=dtype)
    x = random(device, dtype, tokens, WIDTH)

    def strided(q, k, v):
        out, lse = torch.empty_like(q), torch.empty(q.shape[:2], dtype=torch.float32, device=device)
        attention.strided_forward(case, q, k, v, out, lse)
        return out

    def plain(q, k, v):
        return attention.gather_forward(case, q, k, v, kernel=attention.plain_kernel)

    def call():
        with torch.no_grad():
            return [encoder_layer(weights, x, strided)]

    def check(results):
        with torch.no_grad():
            wide = {key: weight.double() for key, weight in weights.items()}
            expected = encoder_layer(wide, x.double(), plain)
        return attention.error(results[0], expected, dtype)

    pairs = sum(min(w, tokens) / r**2 for w, r in zip(case["segments"], case["rates"]))
    work = 4 * tokens * WIDTH * pairs + 2 * tokens * (4 * WIDTH**2 + 2 * WIDTH * FFN)
    parameters = {"tokens": tokens, "width": WIDTH, "heads": HEADS, "ffn": FFN}
    measure("layer", f"encoder layer, {tokens} tokens", parameters, work, "GFLOP/s", [(name, call, check)])
