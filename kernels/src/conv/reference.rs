//! The defining sums, in f64.

use super::ConvDims;

/// Calls `f(input, weight, output)` with the indices of every product of the forward pass.
fn each_product(d: &ConvDims, mut f: impl FnMut(usize, usize, usize)) {
    let (out_h, out_w) = (d.out_h(), d.out_w());
    for n in 0..d.n {
        for (i, j) in (0..out_h).flat_map(|i| (0..out_w).map(move |j| (i, j))) {
            for (u, v) in (0..d.kernel).flat_map(|u| (0..d.kernel).map(move |v| (u, v))) {
                let k = (d.stride * i + u) as isize - d.pad_before as isize;
                let l = (d.stride * j + v) as isize - d.pad_before as isize;
                if k < 0 || l < 0 || k >= d.h as isize || l >= d.w as isize {
                    continue;
                }
                let (k, l) = (k as usize, l as usize);
                for o in 0..d.c_out {
                    for c in 0..d.c_in {
                        f(
                            ((n * d.h + k) * d.w + l) * d.c_in + c,
                            ((o * d.c_in + c) * d.kernel + u) * d.kernel + v,
                            ((n * out_h + i) * out_w + j) * d.c_out + o,
                        );
                    }
                }
            }
        }
    }
}

pub(super) fn forward(d: &ConvDims, x: &[f32], w: &[f32], bias: Option<&[f32]>) -> Vec<f64> {
    let mut y: Vec<f64> = (0..d.out_len()).map(|i| bias.map_or(0.0, |b| f64::from(b[i % d.c_out]))).collect();
    each_product(d, |at_x, at_w, at_y| y[at_y] += f64::from(x[at_x]) * f64::from(w[at_w]));
    y
}

pub(super) fn backward_input(d: &ConvDims, w: &[f32], dy: &[f32]) -> Vec<f64> {
    let mut dx = vec![0.0; d.in_len()];
    each_product(d, |at_x, at_w, at_y| dx[at_x] += f64::from(w[at_w]) * f64::from(dy[at_y]));
    dx
}

pub(super) fn backward_weight(d: &ConvDims, x: &[f32], dy: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let mut dw = vec![0.0; d.weight_len()];
    each_product(d, |at_x, at_w, at_y| dw[at_w] += f64::from(x[at_x]) * f64::from(dy[at_y]));
    let mut db = vec![0.0; d.c_out];
    for (i, g) in dy.iter().enumerate() {
        db[i % d.c_out] += f64::from(*g);
    }
    (dw, db)
}
