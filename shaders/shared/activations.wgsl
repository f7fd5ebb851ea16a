// The activation of a feed-forward network and its derivative, for each element of a vector. `activation` is "identity", "relu",
// "gelu" or "silu".

#include "vector_width.wgsl"

const SQRT_HALF: f32 = 0.7071067811865476;
const INV_SQRT_2_PI: f32 = 0.3989422804014327;

// Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: |error| <= 1.5e-7.
fn erf(x: Vector) -> Vector {
    let a = abs(x);
    let t = 1.0 / fma(Vector(0.3275911), a, Vector(1.0));
    let high = fma(t, fma(t, Vector(1.061405429), Vector(-1.453152027)), Vector(1.421413741));
    let poly = t * fma(t, fma(t, high, Vector(-0.284496736)), Vector(0.254829592));
    let tail = poly * exp(-min(a * a, Vector(80.0)));
    return sign(x) * (1.0 - tail);
}

// Below this x, 1 / (1 + exp(-x)) is less than 2e-38, near the smallest normal f32. There sigmoid returns 0.
const SIGMOID_BEGIN: f32 = -87.0;

// 1 / (1 + exp(-x)). The exponent is never positive, so that nothing overflows.
fn sigmoid(x: Vector) -> Vector {
    let e = exp(-min(abs(x), Vector(-SIGMOID_BEGIN)));
    let s = select(e, Vector(1.0), x >= Vector()) / (1.0 + e);
    return select(s, Vector(), x < Vector(SIGMOID_BEGIN));
}

fn activate(x: Vector) -> Vector {
#if activation == "relu"
    return max(x, Vector());
#elif activation == "gelu"
    return 0.5 * x * (1.0 + erf(x * SQRT_HALF));
#elif activation == "silu"
    return x * sigmoid(x);
#else
    return x;
#endif
}

// The derivative of the activation at x.
fn activation_slope(x: Vector) -> Vector {
#if activation == "relu"
    return select(Vector(), Vector(1.0), x > Vector());
#elif activation == "gelu"
    // From |x| = 13 on the density is near the smallest normal f32 and counts as 0, also where x * x overflows.
    let density = select(Vector(), INV_SQRT_2_PI * exp(-0.5 * x * x), abs(x) < Vector(13.0));
    return fma(x, density, 0.5 * (1.0 + erf(x * SQRT_HALF)));
#elif activation == "silu"
    let s = sigmoid(x);
    return fma(x * s, sigmoid(-x), s);
#else
    return Vector(1.0);
#endif
}
