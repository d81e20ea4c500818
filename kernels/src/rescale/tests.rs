use super::*;
use crate::simd::{Isa, dispatch_to};
use crate::testing::{added, assert_close, assert_same_bits_for_any_pool, dot, gradient, numbers, wide};

const ALL: [Rescale; 5] = [
    Rescale::Mean,
    Rescale::FirDown(Edge::Zero),
    Rescale::FirDown(Edge::Reflect),
    Rescale::FirUp(Edge::Zero),
    Rescale::FirUp(Edge::Reflect),
];

fn dims(rescale: Rescale, [n, h, w, c]: [usize; 4]) -> RescaleDims {
    RescaleDims { n, h, w, c, rescale }
}

/// One axis by the definition: zeros between the pixels, a margin, a correlation with the kernel, and every second result.
fn line(x: &[f64], rescale: Rescale) -> Vec<f64> {
    let margin = |x: &[f64], edge, before: usize, after: usize| {
        let len = x.len() as isize;
        let at = |i: isize| match edge {
            Edge::Reflect if !(0..len).contains(&i) => x[(if i < 0 { -i } else { 2 * (len - 1) - i }) as usize],
            _ => {
                if (0..len).contains(&i) {
                    x[i as usize]
                } else {
                    0.0
                }
            }
        };
        (-(before as isize)..len + after as isize).map(at).collect::<Vec<_>>()
    };
    let correlate = |x: &[f64], kernel: &[f64], stride: usize| {
        let windows = x.windows(kernel.len()).step_by(stride);
        windows.map(|window| window.iter().zip(kernel).map(|(x, k)| x * k).sum()).collect::<Vec<f64>>()
    };
    match rescale {
        Rescale::Mean => correlate(x, &[0.5, 0.5], 2),
        Rescale::FirDown(edge) => correlate(&margin(x, edge, 1, 1), &[0.125, 0.375, 0.375, 0.125], 2),
        Rescale::FirUp(edge) => {
            let spread: Vec<f64> = margin(x, edge, 1, 1).into_iter().flat_map(|x| [x, 0.0]).collect();
            // The first pixel of the image lies at 2 here, and the outputs begin two to its left.
            correlate(&spread, &[0.25, 0.75, 0.75, 0.25], 1)[..2 * x.len()].to_vec()
        }
    }
}

fn reference(d: &RescaleDims, x: &[f64]) -> Vec<f64> {
    let mut y = vec![0.0; d.out_len()];
    for n in 0..d.n {
        for k in 0..d.c {
            let at = |i: usize, j: usize| x[((n * d.h + i) * d.w + j) * d.c + k];
            let wide: Vec<Vec<f64>> =
                (0..d.h).map(|i| line(&(0..d.w).map(|j| at(i, j)).collect::<Vec<_>>(), d.rescale)).collect();
            for j in 0..d.out_w() {
                let column = line(&wide.iter().map(|row| row[j]).collect::<Vec<_>>(), d.rescale);
                for (i, value) in column.into_iter().enumerate() {
                    y[((n * d.out_h() + i) * d.out_w() + j) * d.c + k] = value;
                }
            }
        }
    }
    y
}

#[test]
fn both_passes_agree_with_the_reference() {
    for rescale in ALL {
        for shape in
            [[0, 2, 2, 2], [1, 2, 2, 0], [1, 2, 2, 1], [2, 3, 2, 5], [1, 4, 6, 17], [2, 5, 7, 3], [1, 6, 3, 40]]
        {
            let d = dims(rescale, shape);
            let (x, dy, before) = (numbers(d.in_len(), 1), numbers(d.out_len(), 2), numbers(d.in_len(), 3));
            let mut y = vec![f32::NAN; d.out_len()];
            forward(&d, &x, &mut y);
            assert_close(&format!("{d:?}"), &y, &reference(&d, &wide(&x)), 3e-7);
            let mut dx = before.clone();
            backward(&d, &dy, &mut dx);
            let exact = gradient(&x, |x| dot(&reference(&d, x), &dy));
            assert_close(&format!("{d:?} dx"), &dx, &added(&before, &exact), 1e-6);
        }
    }
}

#[test]
fn every_instruction_set_agrees() {
    for rescale in ALL {
        let d = dims(rescale, [2, 4, 6, 21]);
        let (x, exact) = (numbers(d.in_len(), 1), reference(&d, &wide(&numbers(d.in_len(), 1))));
        let (rows, columns) = (rescale.axis(d.h), rescale.axis(d.w));
        for &isa in Isa::available() {
            let mut y = vec![f32::NAN; d.out_len()];
            dispatch_to(
                isa,
                Apply::<false> { rows: &rows, columns: &columns, h: d.h, w: d.w, c: d.c, x: &x, first: 0, y: &mut y },
            );
            assert_close(&format!("{isa:?} {d:?}"), &y, &exact, 3e-7);
        }
    }
}

#[test]
fn single_pixels_are_scaled_up_between_zeros() {
    let d = dims(Rescale::FirUp(Edge::Zero), [1, 1, 1, 1]);
    let mut y = [f32::NAN; 4];
    forward(&d, &[16.0], &mut y);
    assert_eq!(y, [9.0; 4]);
    for rescale in [Rescale::Mean, Rescale::FirDown(Edge::Zero)] {
        forward(&dims(rescale, [1, 1, 1, 1]), &[16.0], &mut []);
    }
}

#[test]
#[should_panic(expected = "rescale: an image of 4x1 pixels, at least 2x2 are needed")]
fn a_single_pixel_cannot_be_reflected() {
    let d = dims(Rescale::FirUp(Edge::Reflect), [1, 4, 1, 1]);
    forward(&d, &[0.0; 4], &mut [0.0; 16]);
}

#[test]
#[should_panic(expected = "rescale: the output has 3 elements")]
fn lengths_are_checked() {
    forward(&dims(Rescale::Mean, [1, 2, 2, 1]), &[0.0; 4], &mut [0.0; 3]);
}

#[test]
fn bits_do_not_depend_on_threads() {
    for rescale in ALL {
        let d = dims(rescale, [3, 32, 32, 9]);
        let (x, dy) = (numbers(d.in_len(), 1), numbers(d.out_len(), 2));
        assert_same_bits_for_any_pool(|| {
            let (mut y, mut dx) = (vec![0.0; d.out_len()], numbers(d.in_len(), 3));
            forward(&d, &x, &mut y);
            backward(&d, &dy, &mut dx);
            vec![y, dx]
        });
    }
}
