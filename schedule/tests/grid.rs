//! Step grids against diffusers' timesteps.

use proptest::prelude::*;
use tweedie_schedule::{ScheduleError, Spacing, StepGrid};

const ALL: [Spacing; 3] = [Spacing::Leading, Spacing::Linspace, Spacing::Trailing];

/// Timesteps as numpy computes them from the formulas of diffusers' DDPM and DDIM schedulers; step = timestep + 1.
#[test]
fn grids_agree_with_numpy() {
    use Spacing::{Leading, Linspace, Trailing};
    let cases: &[(usize, usize, Spacing, usize, &[usize])] = &[
        (1000, 10, Linspace, 0, &[999, 888, 777, 666, 555, 444, 333, 222, 111, 0]),
        (1000, 10, Leading, 0, &[900, 800, 700, 600, 500, 400, 300, 200, 100, 0]),
        (1000, 10, Leading, 1, &[901, 801, 701, 601, 501, 401, 301, 201, 101, 1]),
        (1000, 10, Trailing, 0, &[999, 899, 799, 699, 599, 499, 399, 299, 199, 99]),
        (1000, 7, Linspace, 0, &[999, 832, 666, 500, 333, 166, 0]),
        (1000, 7, Leading, 0, &[852, 710, 568, 426, 284, 142, 0]),
        (1000, 7, Trailing, 0, &[999, 856, 713, 570, 428, 285, 142]),
        (1000, 3, Linspace, 0, &[999, 500, 0]),
        (1000, 3, Leading, 0, &[666, 333, 0]),
        (1000, 3, Trailing, 0, &[999, 666, 332]),
        (1000, 1, Linspace, 0, &[0]),
        (1000, 1, Leading, 0, &[0]),
        (1000, 1, Trailing, 0, &[999]),
        (50, 20, Linspace, 0, &[49, 46, 44, 41, 39, 36, 34, 31, 28, 26, 23, 21, 18, 15, 13, 10, 8, 5, 3, 0]),
        (50, 20, Leading, 0, &[38, 36, 34, 32, 30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0]),
        // Ties go to the even integer: 47.5, 42.5, 37.5, ... become 48, 42, 38, ... before 1 is subtracted.
        (50, 20, Trailing, 0, &[49, 47, 44, 41, 39, 37, 34, 31, 29, 27, 24, 21, 19, 17, 14, 11, 9, 7, 4, 1]),
        // Here numpy's arange has a 14th entry, -1.
        (15, 13, Trailing, 0, &[14, 13, 12, 11, 9, 8, 7, 6, 5, 4, 2, 1, 0]),
        (1, 1, Linspace, 0, &[0]),
        (1, 1, Leading, 0, &[0]),
        (1, 1, Trailing, 0, &[0]),
    ];
    for &(train_steps, count, spacing, offset, timesteps) in cases {
        let grid = StepGrid::new(train_steps, count, spacing, offset).unwrap();
        let expected: Vec<usize> = timesteps.iter().map(|t| t + 1).collect();
        assert_eq!(grid.steps(), expected, "{train_steps} {count} {spacing:?} {offset}");
    }
}

proptest! {
    /// Every grid has K steps, decreases strictly and stays in 1..=T; the full grid visits every step.
    #[test]
    fn grids_decrease_and_stay_in_range(train_steps in 1..2000_usize, u in 0.0..1.0_f64) {
        let some = 1 + (u * train_steps as f64) as usize;
        for count in [1, some.min(train_steps), train_steps] {
            for spacing in ALL {
                let grid = StepGrid::new(train_steps, count, spacing, 0).unwrap();
                prop_assert_eq!(grid.len(), count);
                prop_assert!(grid.steps().windows(2).all(|pair| pair[1] < pair[0]));
                prop_assert!(grid.steps().iter().all(|t| (1..=train_steps).contains(t)));
                let moves: Vec<_> = grid.moves().collect();
                prop_assert_eq!(moves.len(), count);
                prop_assert_eq!(moves[count - 1], (grid.steps()[count - 1], 0));
                prop_assert!(moves.windows(2).all(|pair| pair[0].1 == pair[1].0));
                if count == train_steps {
                    prop_assert_eq!(grid.steps(), (1..=train_steps).rev().collect::<Vec<_>>());
                }
                if spacing == Spacing::Trailing {
                    prop_assert_eq!(grid.steps()[0], train_steps);
                }
            }
        }
        for spacing in ALL {
            for count in [0, train_steps + 1, usize::MAX] {
                let refused = matches!(StepGrid::new(train_steps, count, spacing, 0), Err(ScheduleError::Count { .. }));
                prop_assert!(refused);
            }
        }
    }
}

/// Every spacing, every T up to 64 and every K from 1 to T, and every offset of the leading spacing that fits; those that do
/// not are refused.
#[test]
fn every_small_grid_is_in_range() {
    for train_steps in 1..=64_usize {
        for count in 1..=train_steps {
            for spacing in ALL {
                let grid = StepGrid::new(train_steps, count, spacing, 0).unwrap();
                let steps = grid.steps();
                assert_eq!((steps.len(), grid.train_steps(), grid.final_step()), (count, train_steps, 0));
                assert!(steps.windows(2).all(|pair| pair[1] < pair[0]), "{train_steps} {count} {spacing:?}: {steps:?}");
                assert!(steps[0] <= train_steps && steps[count - 1] >= 1, "{train_steps} {count} {spacing:?}");
            }
            let stride = train_steps / count;
            for offset in 0..=train_steps {
                let highest = (count - 1) * stride + offset + 1;
                match StepGrid::new(train_steps, count, Spacing::Leading, offset) {
                    Ok(grid) => {
                        let expected: Vec<usize> = (0..count).rev().map(|j| j * stride + offset + 1).collect();
                        assert_eq!(grid.steps(), expected);
                        assert!(highest <= train_steps);
                    }
                    Err(error) => {
                        assert!(highest > train_steps, "{train_steps} {count} {offset}: {error}");
                        assert!(matches!(error, ScheduleError::GridRange { position: 0, .. }));
                    }
                }
                // The offset shifts the leading spacing alone.
                for spacing in [Spacing::Linspace, Spacing::Trailing] {
                    let shifted = StepGrid::new(train_steps, count, spacing, offset).unwrap();
                    assert_eq!(shifted, StepGrid::new(train_steps, count, spacing, 0).unwrap());
                }
            }
        }
    }
}

#[test]
fn grids_are_checked() {
    assert!(matches!(
        StepGrid::new(1000, 1000, Spacing::Leading, 1),
        Err(ScheduleError::GridRange { position: 0, found: 1001, train_steps: 1000 })
    ));
    assert!(matches!(StepGrid::new(1000, 10, Spacing::Leading, usize::MAX), Err(ScheduleError::GridRange { .. })));
    assert!(matches!(StepGrid::from_steps(10, vec![]), Err(ScheduleError::Count { .. })));
    assert!(matches!(StepGrid::from_steps(10, vec![5, 5]), Err(ScheduleError::GridOrder { position: 1, .. })));
    assert!(matches!(StepGrid::from_steps(10, vec![5, 0]), Err(ScheduleError::GridRange { position: 1, .. })));
    assert!(matches!(StepGrid::from_steps(10, vec![11]), Err(ScheduleError::GridRange { position: 0, .. })));

    let grid = StepGrid::new(1000, 10, Spacing::Leading, 0).unwrap().with_final_step(1).unwrap();
    assert_eq!(grid.moves().last(), Some((1, 1)));
    assert!(grid.with_final_step(2).is_err());

    for spacing in ALL {
        assert_eq!(Spacing::from_name(spacing.name()).unwrap(), spacing);
    }
    assert!(Spacing::from_name("even").unwrap_err().to_string().contains(Spacing::NAMES));
}
