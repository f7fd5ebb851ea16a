//! Recordings of models that are abandoned, early or late, leak nothing.

use dilated_attention::longnet::{Input, Recompute};
use dilated_attention::ops::Labels;
use dilated_attention::{ContextOptions, DType, Tensor};

use crate::model_errors::{VOCAB, call, decoder, ids, ready};
use crate::support::contexts::context_with;

/// On a context of its own, whose leases are those of this test.
#[test]
fn abandoned_recordings_leak_nothing() {
    let on = &context_with(&ContextOptions::default());
    let mut recorder = on.recorder("weights");
    let (model, weights, gradients) = ready(&mut recorder, decoder());
    recorder.submit().unwrap();
    on.wait().expect("waits");
    let before = on.pool().stats().leases.current;
    for recompute in [Recompute::Insides, Recompute::Layers] {
        for stage in 0..6 {
            let mut recorder = on.recorder("abandoned");
            let r = &mut recorder;
            let ten = ids(r, 10);
            let mut cache = model.new_cache(r, 2, 1).unwrap();
            let mut kept: Vec<Tensor> = Vec::new();
            let input = Input::Tokens(&ten);
            let call = call(2, 5);
            if stage > 0 {
                let (features, saved) = model
                    .forward_saving(r, &weights, input, &call, Some(1), recompute)
                    .unwrap();
                kept.push(features.clone());
                if stage > 1 {
                    let labels = Labels::upload(r, &[1; 10], VOCAB).unwrap();
                    let to = Some((&gradients, 0.1));
                    let loss = model.loss(r, &weights, &features, &labels, to).unwrap();
                    let dfeatures = loss.dfeatures.unwrap();
                    if stage > 2 {
                        let sets = [&weights, &gradients];
                        kept.push(model.backward(r, sets, saved, &dfeatures, None).unwrap());
                    }
                }
            }
            if stage > 3 {
                kept.push(model.decode(r, &weights, input, &call, &mut cache).unwrap());
            }
            if stage > 4 {
                // Fails after it has recorded much.
                let narrow = r.zeros("x", &[2, 5, 8], DType::F32).unwrap();
                let wrong = Input::Embeddings(&narrow);
                assert!(model.decode(r, &weights, wrong, &call, &mut cache).is_err());
            }
            // In one order and in the other.
            if stage % 2 == 0 {
                drop(recorder);
                drop((kept, cache));
            } else {
                drop((kept, cache));
                drop(recorder);
            }
            drop(ten);
            on.wait().expect("waits");
            let stats = on.pool().stats();
            assert_eq!(
                stats.leases.current, before,
                "{recompute:?}, stage {stage}\n{stats}"
            );
            assert!(stats.identities_hold(), "{stats}");
        }
    }
}
