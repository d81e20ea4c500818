use super::*;
use crate::act::Act;
use crate::conv::reference;
use crate::map::Map;
use crate::panels::lanes;
use crate::testing::{act, numbers};

/// `|a - b| / |b|` in the Euclidean norm.
fn relative_error(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let distance: f64 = found.iter().zip(expected).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
    (distance / expected.iter().map(|b| b * b).sum::<f64>()).sqrt()
}

/// Compares the gradients for `parts` with those for `x`, the input that the parts stand for.
fn check(d: &ConvDims, parts: &[Part<'_>], x: &[f32]) {
    let dy = numbers(d.out_len(), 7);
    let (dw_expected, db_expected) = reference::backward_weight(d, x, &dy);
    let dw_expected: Vec<f64> = dw_expected.iter().map(|v| v - 1.0).collect();
    let db_expected: Vec<f64> = db_expected.iter().map(|v| v + 2.0).collect();
    for &isa in Isa::available() {
        // Gradients are added to what is there.
        let (mut dw, mut db) = (vec![-1.0; d.weight_len()], vec![2.0; d.c_out]);
        backward_weight(isa, d, parts, &dy, &mut dw, Some(&mut db));
        assert!(relative_error(&dw, &dw_expected) < 1e-5, "filter {d:?} {isa:?}");
        assert!(relative_error(&db, &db_expected) < 1e-6, "bias {d:?} {isa:?}");
        let mut alone = vec![-1.0; d.weight_len()];
        backward_weight(isa, d, parts, &dy, &mut alone, None);
        assert!(alone == dw, "the bias changes the filter's gradient, {d:?} {isa:?}");
    }
}

#[test]
fn every_size_of_picture_matches_the_reference() {
    for (h, w) in (1..=9).flat_map(|h| (1..=9).map(move |w| (h, w))) {
        let d = ConvDims::same(2, h, w, 16, 16, 3);
        let x = numbers(d.in_len(), 1);
        check(&d, &[Part::plain(&x, d.c_in)], &x);
    }
}

/// One part and several, even and uneven; one group of tiles and several, of one block and several.
#[test]
fn every_division_of_the_work_matches_the_reference() {
    for (n, h, w, c_in, c_out) in
        [(1, 6, 5, 80, 144), (1, 3, 4, 128, 16), (2, 5, 6, 48, 64), (6, 28, 28, 16, 16), (3, 31, 44, 16, 80)]
    {
        let d = ConvDims::same(n, h, w, c_in, c_out, 3);
        let x = numbers(d.in_len(), 1);
        check(&d, &[Part::plain(&x, c_in)], &x);
    }
    let plan = Plan::new(Grid::new(&ConvDims::same(3, 31, 44, 16, 80, 3)).tiles(), 16, 80);
    assert!(plan.groups > 1 && plan.output_parts > 1 && plan.tiles / plan.groups > plan.block);
}

#[test]
fn joined_and_mapped_parts_are_the_input_they_stand_for() {
    let (n, h, w, c_out) = (3, 7, 10, 32);
    for (widths, per_sample, activation) in [
        (vec![16, 48], false, Act::Relu),
        (vec![64, 16, 32], true, Act::Silu),
        (vec![32], true, Act::None),
        (vec![80, 16], false, Act::Silu),
    ] {
        let d = ConvDims::same(n, h, w, widths.iter().sum(), c_out, 3);
        let tensors: Vec<[Vec<f32>; 4]> = widths
            .iter()
            .enumerate()
            .map(|(i, &c)| {
                let (seed, rows) = (10 * i as u64, if per_sample { n } else { 1 });
                let values = numbers(n * h * w * c, seed + 1);
                [values, numbers(rows * c, seed + 2), numbers(rows * c, seed + 3), numbers(n * c, seed + 4)]
            })
            .collect();
        // The first part is read through the map, the second with something added as well, the last as it is.
        let parts: Vec<Part<'_>> = tensors
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(i, ([values, scale, shift, add], &channels))| Part {
                values,
                channels,
                map: (i == 0 || i + 1 < widths.len()).then_some(Map { scale, shift, per_sample, act: activation }),
                add: (i == 1).then_some(add),
            })
            .collect();
        let mut x = Vec::with_capacity(d.in_len());
        for pixel in 0..n * h * w {
            for part in &parts {
                for c in 0..part.channels {
                    let sample = pixel / (h * w);
                    let mut value = f64::from(part.values[pixel * part.channels + c]);
                    if let Some(map) = part.map {
                        let k = c + if per_sample { sample * part.channels } else { 0 };
                        value = act(map.act, value * f64::from(map.scale[k]) + f64::from(map.shift[k]));
                    }
                    x.push((value + part.add.map_or(0.0, |add| f64::from(add[sample * part.channels + c]))) as f32);
                }
            }
        }
        check(&d, &parts, &x);
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    for d in [ConvDims::same(6, 30, 29, 32, 16, 3), ConvDims::same(2, 9, 7, 80, 144, 3)] {
        let (x, dy) = (numbers(d.in_len(), 1), numbers(d.out_len(), 2));
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let (mut dw, mut db) = (vec![0.0; d.weight_len()], vec![0.0; d.c_out]);
            let parts = [Part::plain(&x, d.c_in)];
            pool.install(|| backward_weight(Isa::best(), &d, &parts, &dy, &mut dw, Some(&mut db)));
            [dw, db].concat().iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        };
        let one = run(1);
        for threads in [2, 3, 8] {
            assert!(run(threads) == one, "{threads} threads give other bits than one for {d:?}");
        }
    }
}

#[test]
fn parts_are_even_and_whole() {
    for len in (1..=40usize).map(|units| 8 * units) {
        let pieces = len.div_ceil(PART);
        let parts: Vec<Range<usize>> = (0..pieces).map(|index| part(len, pieces, index)).collect();
        assert!(parts[0].start == 0 && parts[pieces - 1].end == len);
        assert!(parts.windows(2).all(|pair| pair[0].end == pair[1].start));
        let longest = parts.iter().map(Range::len).max().unwrap();
        assert!(longest <= widest(len, pieces) && widest(len, pieces) <= PART, "{len}");
        for lanes in Isa::available().iter().map(|&isa| lanes(isa)).filter(|&lanes| len.is_multiple_of(lanes)) {
            assert!(parts.iter().all(|part| part.len().is_multiple_of(lanes)), "{len}");
        }
    }
}
