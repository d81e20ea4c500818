use super::*;
use crate::testing::{assert_same_bits_for_any_pool, numbers};

#[test]
fn rows_are_looked_up_and_gradients_return_to_them() {
    let (rows, c) = (5, 7);
    let table = numbers(rows * c, 1);
    let ids = [Some(3), None, Some(0), Some(3), Some(4)];
    let mut y = vec![f32::NAN; ids.len() * c];
    forward(&table, c, &ids, &mut y);
    for (y, id) in y.chunks(c).zip(ids) {
        match id {
            Some(id) => assert_eq!(y, &table[id * c..][..c]),
            None => assert_eq!(y, [0.0; 7]),
        }
    }
    let dy = numbers(ids.len() * c, 2);
    let before = numbers(rows * c, 3);
    let mut dtable = before.clone();
    backward(c, &ids, &dy, &mut dtable);
    for k in 0..c {
        assert_eq!(dtable[k], before[k] + dy[2 * c + k]);
        assert_eq!(dtable[c + k], before[c + k]);
        assert_eq!(dtable[2 * c + k], before[2 * c + k]);
        assert_eq!(dtable[3 * c + k], before[3 * c + k] + dy[k] + dy[3 * c + k]);
        assert_eq!(dtable[4 * c + k], before[4 * c + k] + dy[4 * c + k]);
    }
}

#[test]
fn nothing_is_looked_up() {
    forward(&[], 4, &[], &mut []);
    forward(&[], 0, &[Some(2), None], &mut []);
    let mut y = [1.0; 4];
    forward(&[], 4, &[None], &mut y);
    assert_eq!(y, [0.0; 4]);
    backward(4, &[None], &[1.0; 4], &mut []);
    backward(0, &[Some(1)], &[], &mut []);
}

#[test]
fn bits_do_not_depend_on_threads() {
    let table = numbers(50 * 64, 1);
    let ids: Vec<Option<usize>> = (0..900).map(|i| (i % 7 != 0).then_some(i * i % 50)).collect();
    assert_same_bits_for_any_pool(|| {
        let (mut y, mut dtable) = (vec![0.0; 900 * 64], vec![0.0; 50 * 64]);
        forward(&table, 64, &ids, &mut y);
        backward(64, &ids, &y, &mut dtable);
        vec![y, dtable]
    });
}

#[test]
#[should_panic(expected = "embedding: index 2 is outside a table of 2 rows")]
fn indices_are_checked() {
    forward(&[0.0; 6], 3, &[Some(1), Some(2)], &mut [0.0; 6]);
}

#[test]
#[should_panic(expected = "a table of 7 elements has no whole number of rows of 3")]
fn the_table_is_checked() {
    forward(&[0.0; 7], 3, &[], &mut []);
}
