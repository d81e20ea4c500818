use super::*;
use crate::act::Act;
use crate::conv::reference;
use crate::map::{self, Map};
use crate::testing::{added, assert_close, assert_same_bits_for_any_pool, numbers, wide};

/// Few channels, few outputs, both, neither; strides, padding, linear layers.
fn shapes() -> Vec<ConvDims> {
    vec![
        ConvDims::same(3, 9, 28, 1, 64, 3),
        ConvDims::same(2, 5, 7, 3, 128, 3),
        ConvDims::same(1, 2, 401, 2, 70, 3),
        ConvDims { stride: 2, pad_before: 0, ..ConvDims::same(2, 8, 7, 3, 20, 3) },
        ConvDims::same(2, 5, 7, 48, 40, 1),
        ConvDims::same(3, 28, 28, 64, 1, 1),
        ConvDims::same(2, 6, 19, 70, 3, 3),
        ConvDims { stride: 2, ..ConvDims::same(2, 7, 8, 33, 4, 3) },
        ConvDims { pad_before: 2, ..ConvDims::same(2, 4, 5, 20, 2, 3) },
        ConvDims::same(2, 9, 10, 40, 33, 1),
        ConvDims { stride: 2, ..ConvDims::same(2, 8, 9, 24, 33, 3) },
        ConvDims::linear(131, 3, 2),
        ConvDims::linear(1030, 33, 17),
        ConvDims::linear(7, 300, 600),
    ]
}

fn filter(d: &ConvDims, isa: Isa, w: &[f32]) -> (Panels, Panels) {
    let mut filter = crate::conv::Filter::for_isa(isa, d.kernel, d.c_in, d.c_out);
    filter.pack(w, true);
    (filter.forward().clone(), filter.backward().clone())
}

/// `|found - exact| / |exact|` in the Euclidean norm.
fn relative_error(found: &[f32], exact: &[f64]) -> f64 {
    let distance: f64 = found.iter().zip(exact).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
    (distance / exact.iter().map(|b| b * b).sum::<f64>()).sqrt()
}

#[test]
fn every_pass_matches_its_reference_on_every_instruction_set() {
    for d in shapes() {
        let (x, w) = (numbers(d.in_len(), 1), numbers(d.weight_len(), 2));
        let (bias, dy) = (numbers(d.c_out, 3), numbers(d.out_len(), 4));
        let y_exact = reference::forward(&d, &x, &w, Some(&bias));
        let before = [numbers(d.in_len(), 5), numbers(d.weight_len(), 6), numbers(d.c_out, 7)];
        let dx_exact = added(&before[0], &reference::backward_input(&d, &w, &dy));
        let (dw, db) = reference::backward_weight(&d, &x, &dy);
        let (dw_exact, db_exact) = (added(&before[1], &dw), added(&before[2], &db));
        for &isa in Isa::available() {
            let (forward_panels, backward_panels) = filter(&d, isa, &w);
            let (mut y, [mut dx, mut dw, mut db]) = (vec![f32::NAN; d.out_len()], before.clone());
            let parts = [Part::plain(&x, d.c_in)];
            forward(&d, &parts, &forward_panels, Some(&bias), Target::overwrite(&mut y, d.c_out));
            backward_input(&d, &backward_panels, &dy, Target::accumulate(&mut dx, d.c_in));
            backward_weight(isa, &d, &parts, &dy, &mut dw, Some(&mut db));
            for (name, found, exact, most) in [
                ("y", &y, &y_exact, 1e-6),
                ("dx", &dx, &dx_exact, 1e-6),
                ("dw", &dw, &dw_exact, 2e-6),
                ("db", &db, &db_exact, 2e-6),
            ] {
                let error = relative_error(found, exact);
                assert!(error < most, "{name} of {d:?} {isa:?}: an error of {error:e}");
            }
        }
    }
}

/// A convolution that reads its input through a map, with numbers added or in two parts gives what it gives for the
/// tensor that this stands for.
#[test]
fn what_is_read_may_be_mapped_added_to_and_joined() {
    for d in shapes() {
        let (a, b) = (d.c_in - d.c_in / 3, d.c_in / 3);
        let pixels = d.n * d.h * d.w;
        let (x, add) = (numbers(pixels * a, 1), numbers(d.n * a, 2));
        let (scale, shift) = (numbers(d.n * a, 3), numbers(d.n * a, 4));
        let other = numbers(pixels * b, 5);
        let map = Map { scale: &scale, shift: &shift, per_sample: true, act: Act::Silu };
        let mut read = vec![0.0; x.len()];
        map::apply(d.n, d.h * d.w, a, &x, &map, &mut read);
        crate::channels::add_bias(d.n, d.h * d.w, a, &add, &mut read);
        let mut joined = vec![0.0; d.in_len()];
        crate::channels::concat(pixels, &read, a, &other, b, &mut joined);
        let mapped = Part { values: &x, channels: a, map: Some(map), add: Some(&add) };

        check_parts(&d, &[mapped, Part::plain(&other, b)], &joined);
        let single = ConvDims { c_in: a, ..d };
        check_parts(&single, &[mapped], &read);
    }
}

fn check_parts(d: &ConvDims, parts: &[Part<'_>], joined: &[f32]) {
    let (w, dy) = (numbers(d.weight_len(), 6), numbers(d.out_len(), 7));
    let (panels, _) = filter(d, Isa::best(), &w);
    let run = |parts: &[Part<'_>]| {
        let (mut y, mut dw) = (vec![f32::NAN; d.out_len()], vec![0.0; d.weight_len()]);
        forward(d, parts, &panels, None, Target::overwrite(&mut y, d.c_out));
        backward_weight(Isa::best(), d, parts, &dy, &mut dw, None);
        (y, dw)
    };
    let (y, dw) = run(parts);
    let (y_exact, dw_exact) = run(&[Part::plain(joined, d.c_in)]);
    assert_close(&format!("y of {d:?}"), &y, &wide(&y_exact), 1e-6);
    assert_close(&format!("dw of {d:?}"), &dw, &wide(&dw_exact), 2e-6);
}

#[test]
fn bits_do_not_depend_on_threads() {
    for d in shapes() {
        let (x, w, dy) = (numbers(d.in_len(), 1), numbers(d.weight_len(), 2), numbers(d.out_len(), 3));
        let (forward_panels, backward_panels) = filter(&d, Isa::best(), &w);
        let scale = vec![1.5; d.c_in];
        let map = Map { scale: &scale, shift: &scale, per_sample: false, act: Act::Relu };
        let parts = [Part { map: Some(map), ..Part::plain(&x, d.c_in) }];
        assert_same_bits_for_any_pool(|| {
            let (mut y, mut dx) = (vec![0.0; d.out_len()], vec![0.0; d.in_len()]);
            let (mut dw, mut db) = (vec![0.0; d.weight_len()], vec![0.0; d.c_out]);
            forward(&d, &parts, &forward_panels, None, Target::overwrite(&mut y, d.c_out));
            backward_input(&d, &backward_panels, &dy, Target::accumulate(&mut dx, d.c_in));
            backward_weight(Isa::best(), &d, &parts, &dy, &mut dw, Some(&mut db));
            vec![y, dx, dw, db]
        });
    }
}
