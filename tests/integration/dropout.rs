//! Dropout in whole models: gradients along directions against differences of the device's own features.

use dilated_attention::longnet::{LongNet, Recompute};
use dilated_attention::{AttentionShape, Context};

use crate::models::cases;
use crate::support::kernel_contexts::kernel_contexts;
use crate::support::models::{Case, Inputs, dot, draw, wide};

/// A step seed, which draws the same in every run.
const SEED: Option<u64> = Some(77);

fn run(context: &Context, case: &Case, values: &[Vec<f32>]) -> (f64, Vec<Vec<f32>>) {
    let run = case.run(context, values, Recompute::Insides, SEED).unwrap();
    // Added up in double precision: a sum on the device would round away what a small step changes.
    (dot(&wide(&run.features), &case.inputs.dy), run.gradients)
}

/// For each parameter, a step of a thousandth of its size along its gradient changes the result as the gradient says. A backward
/// that drops other elements than the forward is off by tens of percent wherever it does; 1 % is allowed for curvature.
#[test]
fn gradients_are_those_of_what_was_dropped() {
    let on = &kernel_contexts()[0].context;
    // Sub-LN; post-norm with learned positions; one branch: the others differ in nothing that drops.
    for mut case in cases().into_iter().step_by(3) {
        // Features weighted at random, for all.
        (case.config.vocab_size, case.config.output_projection) = (None, Default::default());
        (case.config.dropout, case.config.activation_dropout) = (0.3, 0.2);
        case.inputs = Inputs::new(&case.config, AttentionShape::new(2, 24).unwrap());
        let model = LongNet::new(on, case.config.clone()).unwrap();
        let values = draw(model.parameters(), 5);
        let (at, gradients) = run(on, &case, &values);
        let features = case.inputs.dy.len() as f64;
        for (index, gradient) in gradients.iter().enumerate() {
            let size = |values: &[f32]| wide(values).iter().map(|x| x * x).sum::<f64>().sqrt();
            let slope = size(gradient);
            let step = 0.001 * size(&values[index]) / slope;
            let expected = 2.0 * step * slope * slope;
            // Roundings of features of size 1, of either sign.
            let noise = 2e-6 * features.sqrt();
            let moved = |sign: f64| {
                let mut moved = values.clone();
                for (value, gradient) in moved[index].iter_mut().zip(gradient) {
                    *value += (sign * step * f64::from(*gradient)) as f32;
                }
                run(on, &case, &moved).0
            };
            let name = &model.parameters().specs()[index].name;
            if expected < 50.0 * noise {
                // What changes nothing measurable: the bias of keys without positions.
                assert!(
                    name.contains("k_proj.bias") || name.contains("k_ln.bias"),
                    "{name}"
                );
                continue;
            }
            let found = moved(1.0) - moved(-1.0);
            assert!(
                (found - expected).abs() <= 0.01 * expected + noise,
                "{}: {name} at {at}: {found}, expected {expected}",
                case.name
            );
        }
    }
}
