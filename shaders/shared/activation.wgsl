// Activations of feed-forward networks and their derivatives. Prelude: ACTIVATION.

const RELU: u32 = 1u;
const GELU: u32 = 2u;

const SQRT_HALF: f32 = 0.7071067811865476;
const INV_SQRT_2_PI: f32 = 0.3989422804014327;

// Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: |error| <= 1.5e-7.
fn erf(x: f32) -> f32 {
    let a = abs(x);
    let t = 1.0 / fma(0.3275911, a, 1.0);
    let poly = t * fma(t, fma(t, fma(t, fma(t, 1.061405429, -1.453152027), 1.421413741), -0.284496736), 0.254829592);
    let tail = poly * exp(-min(a * a, 80.0));
    return sign(x) * (1.0 - tail);
}

fn activate(x: f32) -> f32 {
    switch (ACTIVATION) {
        case RELU: { return max(x, 0.0); }
        case GELU: { return 0.5 * x * (1.0 + erf(x * SQRT_HALF)); }
        default: { return x; }
    }
}

fn activation_slope(x: f32) -> f32 {
    switch (ACTIVATION) {
        case RELU: { return select(0.0, 1.0, x > 0.0); }
        case GELU: {
            // Vanishes before x can grow.
            let density = select(0.0, INV_SQRT_2_PI * exp(-0.5 * x * x), abs(x) < 13.0);
            return fma(x, density, 0.5 * (1.0 + erf(x * SQRT_HALF)));
        }
        default: { return 1.0; }
    }
}
