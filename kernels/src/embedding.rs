//! Rows of a table, looked up by index: `y[i] = table[ids[i]]`, and the zero vector for `None`.

use crate::par::{check_len, rows_mut};

/// Looks up rows of `table` (`[rows, c]`); `y` is `[ids.len(), c]`. `None` gives zeros.
///
/// # Panics
/// If `y` has not `ids.len() * c` elements, `table` is not a whole number of rows, or an index is not a row of it.
pub fn forward(table: &[f32], c: usize, ids: &[Option<usize>], y: &mut [f32]) {
    check_len("embedding", "y", y.len(), ids.len() * c);
    check_table("embedding", table.len(), c, ids);
    rows_mut(y, c, |first, y| {
        for (y, id) in y.chunks_exact_mut(c).zip(&ids[first..]) {
            match id {
                Some(id) => y.copy_from_slice(&table[id * c..][..c]),
                None => y.fill(0.0),
            }
        }
    });
}

/// `dtable[ids[i]] += dy[i]`, in the order of `i`; nothing for `None`.
///
/// # Panics
/// As [`forward`].
pub fn backward(c: usize, ids: &[Option<usize>], dy: &[f32], dtable: &mut [f32]) {
    check_len("embedding backward", "dy", dy.len(), ids.len() * c);
    check_table("embedding backward", dtable.len(), c, ids);
    if c == 0 {
        return;
    }
    // Few rows are added, and two of them may be the same: one thread, in order.
    for (dy, id) in dy.chunks_exact(c).zip(ids) {
        if let Some(id) = id {
            for (dt, dy) in dtable[id * c..][..c].iter_mut().zip(dy) {
                *dt += dy;
            }
        }
    }
}

#[track_caller]
fn check_table(operation: &str, len: usize, c: usize, ids: &[Option<usize>]) {
    let rows = len.checked_div(c).unwrap_or(usize::MAX);
    assert!(
        c == 0 || len.is_multiple_of(c),
        "{operation}: a table of {len} elements has no whole number of rows of {c}"
    );
    if let Some(id) = ids.iter().flatten().find(|id| **id >= rows) {
        panic!("{operation}: index {id} is outside a table of {rows} rows");
    }
}

#[cfg(test)]
mod tests;
