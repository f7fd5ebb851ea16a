"""Dilated attention, forward and backward, two ways; see longnet_torch.py."""

import torch

aten = torch.ops.aten


def allowed(dtype):
    """Error that a result may have, as a share of the largest value."""
    return {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]


def error(result, expected, dtype):
    """Largest error over what is allowed."""
    difference = (result.double() - expected).abs().max()
    share = difference / (expected.abs().max() * allowed(dtype))
    return share.item() if torch.isfinite(share) else float("inf")


# The kernels. Tensors are (batch, heads, rows, elements), of any strides; log-sum-exps (batch, heads, rows).


def kernel_forward(q, k, v, causal):
    """Output, log-sum-exp, and what the backward needs besides."""
    if q.device.type == "cpu":
        return (*aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal), None)
    if q.dtype == torch.float32:
        out, lse, seed, offset = aten._scaled_dot_product_efficient_attention(q, k, v, None, True, 0.0, causal)
        return out, lse[..., : q.shape[2]], (seed, offset)
    out, lse, _, _, _, _, seed, offset, _ = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False)
    return out, lse, (seed, offset)


def kernel_backward(dout, q, k, v, out, lse, causal, state):
    if q.device.type == "cpu":
        return aten._scaled_dot_product_flash_attention_for_cpu_backward(dout, q, k, v, out, lse, 0.0, causal)
    if q.dtype == torch.float32:
        # The kernel reads log-sum-exps in rows of a multiple of 32, of which those that do not exist weigh nothing.
        rows = -(-lse.shape[2] // 32) * 32
        lse = torch.nn.functional.pad(lse, (0, rows - lse.shape[2]), value=torch.inf)
        return aten._scaled_dot_product_efficient_attention_backward(
            dout, q, k, v, None, out, lse, *state, 0.0, [True, True, True, False], causal
        )[:3]
    return aten._scaled_dot_product_flash_attention_backward(
        dout, q, k, v, out, lse.contiguous(), None, None, q.shape[2], k.shape[2], 0.0, causal, *state
    )


# The rows of a branch.


def pieces(case, branch):
    """What one kernel call can take of a branch at once: (first token, segments, their length, rate, offset, heads)."""
    tokens, heads = case["tokens"], case["heads"]
    length, rate = min(case["segments"][branch], tokens), case["rates"][branch]
    group = -(-heads // rate)
    whole = tokens // length
    # Whole segments, then what is left.
    for first, segments, span in ((0, whole, length), (whole * length, 1, tokens - whole * length)):
        for offset in range(-(-heads // group)):
            if segments and span > offset:
                yield first, segments, span, rate, offset, slice(offset * group, min(heads, (offset + 1) * group))


def all_pieces(case):
    """The pieces of all branches, each with whether it is the first to write its rows, as those of a first rate 1 are."""
    for branch, rate in enumerate(case["rates"]):
        for piece in pieces(case, branch):
            yield piece, branch == 0 and rate == 1


def view(tensor, piece):
    """Rows of a piece of (tokens, heads, ...) as a view (segments, heads, rows, ...)."""
    first, segments, span, rate, offset, heads = piece
    rows = tensor[first : first + segments * span].unflatten(0, (segments, span))
    return rows[:, offset::rate, heads].transpose(1, 2)


def strided_forward(case, q, k, v, out, lse):
    """Attention into `out` (tokens, heads, elements) and `lse` (tokens, heads) in f32."""
    causal = case.get("causal", False)
    if case["rates"][0] != 1:
        out.zero_()
        lse.fill_(-torch.inf)
    states = []
    for piece, is_first in all_pieces(case):
        part, part_lse, state = kernel_forward(*(view(tensor, piece) for tensor in (q, k, v)), causal)
        states.append(state)
        to, to_lse = view(out, piece), view(lse, piece)
        if is_first:
            to.copy_(part)
            to_lse.copy_(part_lse)
            continue
        both = torch.logaddexp(to_lse, part_lse)
        to.mul_(torch.exp(to_lse - both).unsqueeze(-1))
        to.add_(torch.exp(part_lse - both).unsqueeze(-1) * part)
        to_lse.copy_(both)
    return states


def strided_backward(case, q, k, v, out, lse, dout, states):
    gradients = [torch.zeros_like(tensor) for tensor in (q, k, v)]
    for (piece, _), state in zip(all_pieces(case), states):
        views = (view(tensor, piece) for tensor in (dout, q, k, v, out, lse))
        parts = kernel_backward(*views, case.get("causal", False), state)
        for gradient, part in zip(gradients, parts):
            view(gradient, piece).add_(part)
    return gradients


def gather_forward(case, q, k, v, kernel=kernel_forward, constant_mix=True):
    """Rows of each branch copied together, attended, scattered into a tensor of the full length, then mixed."""
    outs, lses = [], []
    for branch in range(len(case["rates"])):
        out = torch.zeros_like(q)
        lse = torch.full(q.shape[:2], -1e8, dtype=kernel_dtype(q), device=q.device)
        for piece in pieces(case, branch):
            gathered = (view(tensor, piece).contiguous() for tensor in (q, k, v))
            part, part_lse, _ = kernel(*gathered, case.get("causal", False))
            view(out, piece).copy_(part)
            view(lse, piece).copy_(part_lse.detach() if constant_mix else part_lse)
        outs.append(out)
        lses.append(lse)
    weights = torch.softmax(torch.stack(lses), dim=0).unsqueeze(-1)
    return sum(weight * out for weight, out in zip(weights, outs)).to(q.dtype)


def kernel_dtype(q):
    """Type of log-sum-exps."""
    return torch.float64 if q.dtype == torch.float64 else torch.float32


# What results are compared with.


def plain_kernel(q, k, v, causal):
    """Attention with all its scores."""
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    lse = torch.logsumexp(scores, dim=-1)
    return torch.exp(scores - lse.unsqueeze(-1)) @ v, lse, None


def keys_of(case, token, head):
    """Tokens that a row sees, branch by branch, from the definition."""
    for length, rate in zip(case["segments"], case["rates"]):
        length = min(length, case["tokens"])
        offset = head // -(-case["heads"] // rate)
        begin = token // length * length
        end = min(begin + length, case["tokens"])
        if token - begin >= offset and (token - begin - offset) % rate == 0:
            end = token + 1 if case.get("causal", False) else end
            yield from range(begin + offset, end, rate)


def sampled_rows(tokens):
    count = min(tokens, 16)
    return [i * (tokens - 1) // max(count - 1, 1) for i in range(count)]


def forward_error(case, q, k, v, out):
    """Sampled rows of all heads, one softmax over the keys of all branches."""
    rows = sampled_rows(case["tokens"])
    expected = torch.zeros(len(rows), case["heads"], q.shape[-1], dtype=torch.float64, device=q.device)
    for i, token in enumerate(rows):
        for head in range(case["heads"]):
            keys = torch.tensor(list(keys_of(case, token, head)), dtype=torch.long, device=q.device)
            if len(keys):
                scores = k[keys, head].double() @ q[token, head].double() / q.shape[-1] ** 0.5
                expected[i, head] = torch.softmax(scores, 0) @ v[keys, head].double()
    return error(out[rows], expected, out.dtype)


def backward_error(case, q, k, v, dout, gradients, constant_mix):
    """Head 0 in full, and that the others are numbers."""
    case = dict(case, heads=1)
    inputs = [tensor[:, :1].double().requires_grad_() for tensor in (q, k, v)]
    out = gather_forward(case, *inputs, kernel=plain_kernel, constant_mix=constant_mix)
    expected = torch.autograd.grad(out, inputs, dout[:, :1].double())
    if not all(torch.isfinite(gradient).all() for gradient in gradients):
        return float("inf")
    return max(error(result[:, :1], head, q.dtype) for result, head in zip(gradients, expected))


def run(measure, group, case, device, dtype):
    """Times a case both ways."""
    shape = (case["tokens"], case["heads"], case["head_dim"])
    q, k, v, dout = (torch.rand(shape, device=device).mul_(2).sub_(1).to(dtype) for _ in range(4))
    out, lse = torch.empty_like(q), torch.empty(shape[:2], dtype=torch.float32, device=device)
    # As the library counts: whole rows of segments of w tokens, all of them.
    pairs = sum(min(w, shape[0]) / r**2 for w, r in zip(case["segments"], case["rates"]))
    work = (2 if case.get("causal", False) else 4) * shape[0] * shape[1] * shape[2] * pairs
    parameters = {key: value for key, value in case.items() if key not in ("name", "sets")}
    names = [f"torch {way} {device.type}" for way in ("strided", "gather")]

    def strided():
        strided_forward(case, q, k, v, out, lse)
        return [out, lse]

    def gather():
        with torch.no_grad():
            return [gather_forward(case, q, k, v)]

    def check(results):
        return forward_error(case, q, k, v, results[0])

    if group == "forward":
        ways = [(names[0], strided, check), (names[1], gather, check)]
        measure(group, case["name"], parameters, work, "GFLOP/s", ways)
        return
    states = strided_forward(case, q, k, v, out, lse)
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (q, k, v)]
    mixed = gather_forward(case, *leaves)

    def check_of(constant_mix):
        return lambda gradients: backward_error(case, q, k, v, dout, gradients, constant_mix)

    ways = [
        (names[0], lambda: strided_backward(case, q, k, v, out, lse, dout, states), check_of(False)),
        (names[1], lambda: torch.autograd.grad(mixed, leaves, dout, retain_graph=True), check_of(True)),
    ]
    measure(group, case["name"], parameters, 2.5 * work, "GFLOP/s", ways)
