//! The parameter table and the condition of a batch.

use proptest::prelude::*;
use tweedie_denoiser::{Condition, Params, Role};

proptest! {
    /// Tensors lie end to end in the order in which they were added, each under its own name.
    #[test]
    fn values_lie_end_to_end(shapes in prop::collection::vec(prop::collection::vec(0..4_usize, 0..4), 0..8)) {
        let mut params = Params::new();
        let mut expected = Vec::new();
        for (i, shape) in shapes.iter().enumerate() {
            let role = if i % 2 == 0 { Role::Weight } else { Role::Buffer };
            let range = params.add(format!("layer.{i}"), shape, role);
            prop_assert_eq!(range.start, expected.len());
            let size: usize = shape.iter().product();
            prop_assert_eq!(range.len(), size);
            let values: Vec<f32> = (0..size).map(|j| (100 * i + j) as f32).collect();
            params.get_mut(&format!("layer.{i}")).unwrap().copy_from_slice(&values);
            expected.extend(values);
        }
        prop_assert_eq!(params.values(), &expected[..]);
        prop_assert_eq!((params.len(), params.is_empty()), (expected.len(), expected.is_empty()));
        let trainable: usize = shapes.iter().step_by(2).map(|s| s.iter().product::<usize>()).sum();
        prop_assert_eq!(params.trainable(), trainable);
        for (param, shape) in params.table().iter().zip(&shapes) {
            prop_assert_eq!(&param.shape, shape);
            prop_assert_eq!(params.get(&param.name).unwrap(), &expected[param.range.clone()]);
        }
        prop_assert!(params.find("layer.99").is_none() && params.get_mut("layer").is_none());
    }

    /// Two batches put together come apart again.
    #[test]
    fn conditions_concatenate(
        a in prop::collection::vec(prop::option::of(0..10_usize), 0..6),
        b in prop::collection::vec(prop::option::of(0..10_usize), 0..6),
    ) {
        let (first, second) = (Condition::labels(a.clone()), Condition::labels(b.clone()));
        let both = first.concat(&second);
        prop_assert_eq!(both.len(), a.len() + b.len());
        prop_assert_eq!(both.slice(0..a.len()), first);
        prop_assert_eq!(both.slice(a.len()..both.len()), second);
        prop_assert_eq!(both.is_null(), a.iter().chain(&b).all(|y| y.is_none()));
        prop_assert_eq!(both.is_empty(), a.is_empty() && b.is_empty());
    }
}

#[test]
fn no_condition_is_null() {
    assert_eq!(Condition::none(2), Condition::labels(vec![None, None]));
    assert!(Condition::none(3).is_null() && !Condition::labels(vec![None, Some(0)]).is_null());
}

#[test]
#[should_panic(expected = "two parameters are named w")]
fn names_are_unique() {
    let mut params = Params::new();
    params.add("w", &[1], Role::Weight);
    params.add("w", &[1], Role::Weight);
}
