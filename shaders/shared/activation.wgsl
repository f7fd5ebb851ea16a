// Activations of feed-forward networks and their derivatives, of cells (shared/cells_*.wgsl). Prelude: ACTIVATION.

const RELU: u32 = 1u;
const GELU: u32 = 2u;
const SILU: u32 = 3u;

const SQRT_HALF: f32 = 0.7071067811865476;
const INV_SQRT_2_PI: f32 = 0.3989422804014327;

// Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: |error| <= 1.5e-7.
fn erf(x: Cell) -> Cell {
    let a = abs(x);
    let t = 1.0 / fma(Cell(0.3275911), a, Cell(1.0));
    let high = fma(t, fma(t, Cell(1.061405429), Cell(-1.453152027)), Cell(1.421413741));
    let poly = t * fma(t, fma(t, high, Cell(-0.284496736)), Cell(0.254829592));
    let tail = poly * exp(-min(a * a, Cell(80.0)));
    return sign(x) * (1.0 - tail);
}

// Below this 1 / (1 + exp(-x)) is less than 2e-38, nearly the smallest normal number; from here on it is 0.
const SIGMOID_BEGIN: f32 = -87.0;

// 1 / (1 + exp(-x)). The exponent is never positive, so that nothing overflows.
fn sigmoid(x: Cell) -> Cell {
    let e = exp(-min(abs(x), Cell(-SIGMOID_BEGIN)));
    let s = select(e, Cell(1.0), x >= Cell()) / (1.0 + e);
    return select(s, Cell(), x < Cell(SIGMOID_BEGIN));
}

fn activate(x: Cell) -> Cell {
    switch (ACTIVATION) {
        case RELU: { return max(x, Cell()); }
        case GELU: { return 0.5 * x * (1.0 + erf(x * SQRT_HALF)); }
        case SILU: { return x * sigmoid(x); }
        default: { return x; }
    }
}

fn activation_slope(x: Cell) -> Cell {
    switch (ACTIVATION) {
        case RELU: { return select(Cell(), Cell(1.0), x > Cell()); }
        case GELU: {
            // Vanishes before x can grow.
            let density = select(Cell(), INV_SQRT_2_PI * exp(-0.5 * x * x), abs(x) < Cell(13.0));
            return fma(x, density, 0.5 * (1.0 + erf(x * SQRT_HALF)));
        }
        case SILU: {
            let s = sigmoid(x);
            return fma(x * s, sigmoid(-x), s);
        }
        default: { return Cell(1.0); }
    }
}
